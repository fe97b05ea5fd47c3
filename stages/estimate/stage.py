"""Data and checkpoint -> counts and estimate."""

from pathlib import Path

from reflogp.data_schemas.manifest import Dtype
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.estimate.counts import TokenCounts, count
from reflogp.stages.estimate.estimate import Estimate, estimate
from reflogp.stages.estimate.shape import shape_of
from reflogp.stages.progress import Console


def plan(
    config: PlanConfig, reference: Path, adapter: Path | None, dtype: Dtype, console: Console
) -> tuple[TokenCounts, Estimate]:
    """What a cache of this data and this reference, and training against it, would take.

    Raises:
        InputError: the data or the checkpoint cannot be used.
    """
    shape = shape_of(reference, config.lora_r, config.lora_targets)
    counts = count(config, reference, console, adapter)
    return counts, estimate(config, counts, shape, 4 if dtype == "float32" else 2)
