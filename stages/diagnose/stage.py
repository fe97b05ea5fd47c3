"""The steps of a diagnosis: cache -> facts -> findings, suggestion, histograms, example rows."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import limits_of
from reflogp.stages.diagnose.diagnosis import Diagnosis, Example, Finding, Severity
from reflogp.stages.diagnose.histograms import histograms
from reflogp.stages.diagnose.measures import FAR, distance
from reflogp.stages.diagnose.pair_findings import NEAR, length_bias, reference_order, too_similar
from reflogp.stages.diagnose.row_findings import (
    confidence,
    contradictions,
    duplicates,
    labels,
    other_columns,
    outliers,
    size,
    truncated,
)  # fmt: skip
from reflogp.stages.diagnose.suggest import suggest, verdict
from reflogp.stages.diagnose.survey import Facts, survey
from reflogp.stages.model.decoder import Decoder
from reflogp.stages.progress import Console

_EXAMPLES = 5  # of each kind
_FIRST, _LAST = 150, 50  # tokens shown of a longer text

Look = Callable[[Facts], Finding]

_SHARED: list[Look] = [
    contradictions, duplicates, confidence, truncated, outliers, other_columns,
]  # fmt: skip
_PAIRED: list[Look] = [size, length_bias, too_similar, reference_order, *_SHARED]
_UNPAIRED: list[Look] = [size, labels, *_SHARED]
_SERIOUS: list[Severity] = ["problem", "warning", "fine", "note"]


def diagnose(
    cache: Path, manifest: Manifest, console: Console, decoder: Decoder | None = None
) -> Diagnosis:
    """Measure what the preferences of a sealed cache can teach.

    Args:
        cache: its folder.
        manifest: its manifest.
        console: for progress.
        decoder: makes the texts of the examples; None leaves them out.

    Raises:
        InputError: the cache is empty, or a shard is missing or damaged.
    """
    with console.track("reading", len(manifest.shards), "shards") as advance:
        facts = survey(cache, manifest, advance)
    found = findings(facts)
    examples = list(_examples(facts))
    texts = [example for _, example in examples]
    if decoder is not None:
        texts = [_with_text(cache, manifest, decoder, *one) for one in examples]
    return Diagnosis(
        cache=str(cache),
        kind=facts.kind,
        rows=facts.rows,
        measured=len(facts.positions),
        compared=len(facts.compared),
        verdict=verdict(found),
        findings=found,
        grouped=facts.grouped,
        suggestion=suggest(facts, found),
        histograms=list(histograms(facts)),
        examples=texts,
    )


def findings(facts: Facts) -> list[Finding]:
    """All findings, the most serious first."""
    found = [look(facts) for look in (_PAIRED if facts.kind == "paired" else _UNPAIRED)]
    return sorted(found, key=lambda finding: _SERIOUS.index(finding.severity))


def _examples(facts: Facts) -> Iterator[tuple[int, Example]]:
    """Rows to look at, with their positions in the cache, the most extreme first."""
    far = distance(facts.measures)
    alike = np.nan_to_num(facts.similarity)
    for values, least, why in (
        (far, FAR, "an outlier, {:.1f} standard deviations off"),
        (alike, NEAR, "near-identical: similarity {:.3f}"),
    ):
        for row in np.argsort(-values, kind="stable")[:_EXAMPLES]:
            if values[row] >= least:
                source_row = int(facts.measures.source_row[row])
                yield (
                    int(facts.positions[row]),
                    Example(source_row=source_row, why=why.format(values[row])),
                )


def _with_text(
    cache: Path, manifest: Manifest, decoder: Decoder, position: int, example: Example
) -> Example:
    for shard in manifest.shards:
        if position < shard.rows:
            names = ["prompt_ids", "chosen_ids", "rejected_ids"]
            table = sealed_shard(cache, shard, limits_of(manifest), names)
            row = table.slice(position, 1).to_pylist()[0]
            prompt, chosen, rejected = (_text(decoder, row[name] or []) for name in names)
            return example.model_copy(
                update={"prompt": prompt, "chosen": chosen, "rejected": rejected}
            )
        position -= shard.rows
    return example


def _text(decoder: Decoder, ids: list[int]) -> str:
    if len(ids) <= _FIRST + _LAST:
        return decoder.text(ids)
    return " […] ".join(map(decoder.text, (ids[:_FIRST], ids[-_LAST:])))
