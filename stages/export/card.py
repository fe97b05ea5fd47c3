"""The card of an exported data set: what it is and where it comes from.

It names no files (`configs`), because `datasets` finds data/train-* by itself, and then notices
changed files by their dates. If the card names the files, `datasets` returns its old cached copy.
"""

from reflogp.data_schemas.export import ExportFormat
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.export.tables import SCHEMAS

_TRL = """
## With TRL

TRL 1.16 computes the last two columns itself, if `precompute_ref_log_probs` is set, and fails where
they are there already; without it, it loads a reference and does not look at them. Four lines let
it take them, and the token ids, as they are:

```python
from trl import DPOConfig, DPOTrainer

class PrecomputedDPOTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *_): return dataset
    def _precompute_ref_logps(self, dataset, *_): return dataset
```

with `DPOConfig(precompute_ref_log_probs=True, max_length=None)`: the rows are cut already. Train
the reference that is named above, and no other. With the cache at hand, reflogp's
`CachedDPOTrainer` takes this data set too, and checks that it fits.
"""


def data_card(manifest: Manifest, form: ExportFormat) -> str:
    """The text of README.md beside the data."""
    counts, engine, reference = manifest.counts, manifest.engine, manifest.reference
    name = f"`{reference.name}`" + (
        f" with the LoRA adapter `{reference.adapter}`" if reference.adapter else ""
    )
    unit = "pairs" if manifest.kind == "paired" else "unpaired rows"
    rules = ", ".join(f"{k}={v}" for k, v in manifest.rules.items() if v not in (None, {}))
    checked = manifest.verification.summary() if manifest.verification else "no"
    weights = f"\n| row weights | {manifest.row_weights} |" if manifest.row_weights else ""
    context = f", {counts.context_tokens:,} of context" * bool(counts.context_tokens)
    columns = "\n".join(
        f"| `{field.name}` | {str(field.type).replace('element', 'item')} | "
        f"{field.metadata[b'doc'].decode()} |"
        for field in SCHEMAS[form]
    )
    return f"""---
tags: [dpo, preference, reflogp]
---

# Preferences with the log-probs of a frozen reference

{counts.rows:,} {unit} and log pi_ref of their responses, in nats.

| | |
|---|---|
| reference | {name} |
| its weights | SHA-256 {manifest.inputs.weights} |
| scored by | reflogp {manifest.reflogp_version}, {engine.name} {engine.version}, {engine.dtype} |
| method | {engine.method} |
| data | `{manifest.source.source}`, split {manifest.source.split}; \
{manifest.source.rows:,} rows read, {counts.quarantined:,} quarantined |
| rules | {rules} |{weights}
| tokens | {counts.prompt_tokens:,} prompt, {counts.chosen_tokens:,} chosen, \
{counts.rejected_tokens:,} rejected{context} |
| rescored sample | {checked} |
| cache | sealed {manifest.timing.sealed_at:%Y-%m-%d %H:%M} UTC, SHA-256 {manifest.seal} |

| column | type | meaning |
|---|---|---|
{columns}

The token ids are what was scored. The text is decoded from them, for people; tokenized again, it
need not give the same ids.
{_TRL if form == "trl" else ""}"""
