"""The options of an estimate. Options shared with the stages have the same names and defaults."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.train.config import TrainConfig

Device = Literal["h100", "h200", "a100", "l40s", "cpu"]
_TRAIN = TrainConfig.model_fields


@dataclass(frozen=True)
class Peak:
    """Peak figures of one GPU or one CPU core.

    Attributes:
        flops: dense bfloat16 operations per second.
        memory: bytes; 0 if the device has no memory of its own.
        efficiency: assumed share of `flops` that the pooling model reaches.
        measured: whether `efficiency` was measured or is a guess.
    """

    flops: float
    memory: float
    efficiency: float
    measured: bool


# GPUs: dense bfloat16 without sparsity, from the data sheets; the efficiency of 0.4 is a guess for
# the prefill of models from 1B up, and too high for smaller ones. The core is that of docs/log.md:
# 0.2 TFLOP/s in matrix products of SmolLM2's shapes, and 4.99 HH-RLHF pairs/s on two cores.
DEVICES: dict[Device, Peak] = {
    "h100": Peak(989e12, 80e9, 0.4, measured=False),
    "h200": Peak(989e12, 141e9, 0.4, measured=False),
    "a100": Peak(312e12, 80e9, 0.4, measured=False),
    "l40s": Peak(362e12, 48e9, 0.4, measured=False),
    "cpu": Peak(0.2e12, 0, 0.62, measured=True),
}


class PlanConfig(DataConfig):
    """The options for estimating a cache and a training run against it."""

    gpu: Device = Field("h100", description="Device to run on; 'cpu' means cores with AVX-512.")
    gpus: int = Field(1, ge=1, description="Number of GPUs, or of cores with --gpu cpu.")
    sample: int = Field(
        2000, ge=0, description="Rows to tokenize, spaced evenly over the data; 0: all rows."
    )
    tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="Measured speed of stage one, in sequence tokens per second on one GPU (or "
        "core), as `reflogp inspect` prints it. Replaces the throughput model.",
    )
    efficiency: float | None = Field(
        None, gt=0, le=1, description="Share of the peak that stage one reaches (see docs/plan.md)."
    )
    price: float | None = Field(None, ge=0, description="Price of one GPU (or core) per hour.")
    batch_size: int = Field(2, ge=1, description=_TRAIN["batch_size"].description)
    lora_r: int = Field(8, ge=0, description=_TRAIN["lora_r"].description)
    lora_targets: str | None = Field(None, description=_TRAIN["lora_targets"].description)
    gradient_checkpointing: bool = Field(
        False, description=_TRAIN["gradient_checkpointing"].description
    )
