"""Writes the model card, which describes the training run."""

from huggingface_hub import ModelCardData

from reflogp.data_schemas.manifest import UNITS, Manifest
from reflogp.data_schemas.run_record import RunRecord
from reflogp.stages.train.config import TrainConfig


def model_card(config: TrainConfig, manifest: Manifest, record: RunRecord) -> str:
    """The text of the trained model's README.md."""
    method = f"LoRA (r={config.lora_r})" if config.lora_r else "full fine-tuning"
    start = f"`{manifest.reference.name}`"
    if record.adapter is not None:
        method = "LoRA" if config.lora_r else "full fine-tuning"
        start += f" with the LoRA adapter `{manifest.reference.adapter or record.adapter}`"
    counts, first, last = manifest.counts, record.first, record.last
    rows = f"{counts.rows} {manifest.unit} ({counts.quarantined} quarantined)"
    losses = " + ".join(
        name.upper() if weight == 1 else f"{weight:g} {name.upper()}"
        for name, weight in config.losses.items()
    )
    settings = {"beta": f"{config.beta:g}"} | config.loss_args
    if config.weighting != "none":
        settings["weighting"] = config.weighting
    library = "peft" if config.lora_r and not config.merge else "transformers"
    data = ModelCardData(base_model=record.policy, library_name=library, tags=["dpo", "reflogp"])
    return f"""---
{data}
---

# Trained with {losses}, {method}

Start and reference: {start}. The reference was scored once by reflogp
{manifest.reflogp_version} with {manifest.engine.name} {manifest.engine.version}
({manifest.engine.dtype}) and was not loaded during training.

| | |
|---|---|
| data | `{manifest.source.source}`, {rows} |{_context(manifest)}{_weights(record)}
| loss | {config.loss}, {", ".join(f"{name}={value}" for name, value in settings.items())} |
| steps, {manifest.unit} per step | {record.steps}, {config.batch_size * config.accumulation} |
| peak learning rate | {config.peak_rate:g} ({config.schedule}) |

| | first step | mean of the last quarter |
|---|---|---|
| loss | {first.loss:.4f} | {last.loss:.4f} |
| rewards/margins | {first.margin:.4f} | {last.margin:.4f} |
| rewards/accuracies | {first.accuracy:.3f} | {last.accuracy:.3f} |

These figures are from the training data. {_held_out(record)}
{_warnings(record)}"""


def _context(manifest: Manifest) -> str:
    tokens = manifest.counts.context_tokens
    return f"\n| context | {tokens:,} response tokens, not trained on |" if tokens else ""


def _weights(record: RunRecord) -> str:
    if record.weights is None:
        return ""
    return f"\n| row weights | {record.weights} |"


def _held_out(record: RunRecord) -> str:
    found = record.evaluation
    if found is None:
        return "No data was held out."
    return (
        f"On {record.evaluated_pairs} {UNITS[record.kind]} held out of training: loss "
        f"{found.loss:.4f}, rewards/margins {found.margin:.4f}, rewards/accuracies "
        f"{found.accuracy:.3f}."
    )


def _warnings(record: RunRecord) -> str:
    if not record.warnings:
        return ""
    return "\n## Warnings\n\n" + "".join(f"- {warning}\n" for warning in record.warnings)
