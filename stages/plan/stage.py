"""Data and checkpoint -> counts and estimate."""

from pathlib import Path

from data_schemas.manifest import Dtype
from stages.plan.config import PlanConfig
from stages.plan.counts import Counts, count
from stages.plan.estimate import Estimate, estimate
from stages.plan.shape import shape_of
from stages.progress import Console


def plan(
    config: PlanConfig, reference: Path, adapter: Path | None, dtype: Dtype, console: Console
) -> tuple[Counts, Estimate]:
    """What a cache of this data and this reference, and training against it, would take.

    Raises:
        InputError: the data or the checkpoint cannot be used.
    """
    shape = shape_of(reference, config.lora_r, config.lora_targets)
    counts = count(config, reference, console, adapter)
    return counts, estimate(config, counts, shape, 4 if dtype == "float32" else 2)
