"""Warns before the first step about options that were given and have no effect in this run.

An option that can never work, or asks for a result that the run would not produce, is an error (in
config.py). An option that another setting of the same run turns off is a warning, because YAML
files and sweeps share settings between runs.
"""

from collections.abc import Iterator

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.losses.arguments import parameters
from reflogp.stages.train.losses.registry import EVERY_LOSS
from reflogp.stages.train.schedule import warmup_length


def no_effect(config: TrainConfig, manifest: Manifest, *, adapter: bool, steps: int) -> list[str]:
    """One sentence for each option that was given and has no effect.

    Args:
        config: of the run; only options that were set explicitly count.
        manifest: of the cache.
        adapter: whether training starts from an adapter.
        steps: number of optimizer steps in the run.
    """
    found = {
        name: why
        for name, why in _switched_off(config, manifest, adapter=adapter, steps=steps)
        if name in config.model_fields_set
    }
    return [
        f"--{name.replace('_', '-')} {getattr(config, name)} has no effect: {why}."
        for name, why in found.items()
    ]


def _switched_off(
    config: TrainConfig, manifest: Manifest, *, adapter: bool, steps: int
) -> Iterator[tuple[str, str]]:
    """Options without effect, whether given or not, and the reason for each."""
    if not config.lora_r:
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            yield name, "--lora-r 0 trains all weights"
    elif adapter:
        for name in ("lora_r", "lora_alpha", "lora_targets"):
            yield name, "the adapter that training starts from keeps its own"
    if not any("beta" in parameters(EVERY_LOSS[name].function) for name in config.losses):
        yield "beta", f"the loss {config.loss} has no beta; it only scales the logged rewards"
    if config.max_steps > 0:
        yield "epochs", f"--max-steps {config.max_steps} sets the length of the run"
    if manifest.kind == "unpaired":
        yield "layout", "unpaired rows have one response each"
        yield "report_pairs", "unpaired rows have no pairs"
    if config.warmup and not warmup_length(config.warmup, steps):
        yield "warmup", f"it is less than one of {steps} steps, so the first has the peak rate"
    yield from _evaluation(config, steps)


def _evaluation(config: TrainConfig, steps: int) -> Iterator[tuple[str, str]]:
    if not config.early_stopping:
        yield "early_stopping_threshold", "--early-stopping is off"
    if not config.evaluates:
        yield "best_metric", "nothing is held out; give --eval-fraction or --eval-cache"
    every = config.checkpoint_steps
    if not every:
        yield "best_metric", "--checkpoint-steps 0 evaluates only at the end"
        yield "keep_checkpoints", "--checkpoint-steps 0 writes no checkpoints"
        return
    if every > steps:
        yield "checkpoint_steps", f"the run has only {steps} steps"
    evaluations = -(-steps // (every if every >= 1 else -(-every * steps // 1)))
    if config.early_stopping >= evaluations:
        yield "early_stopping", f"the run has only {evaluations:.0f} evaluations"
