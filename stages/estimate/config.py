"""What a user can set of a plan; what both stages know too goes by their names and defaults."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.train.config import TrainConfig

Device = Literal["h100", "h200", "a100", "l40s", "cpu"]


@dataclass(frozen=True)
class Peak:
    """One GPU, or one core.

    Attributes:
        flops: dense bfloat16 operations a second.
        memory: bytes; 0 where it is not the device's own.
        efficiency: share of `flops` that the pooling model is taken to reach.
        measured: whether that was measured, or is a guess.
    """

    flops: float
    memory: float
    efficiency: float
    measured: bool


# GPUs: dense bfloat16, without sparsity, of the data sheets; 0.4 of it is a guess for the prefill
# of models from 1B up, and too much for smaller ones. The core is one of docs/log.md: 0.2 TFLOP/s
# in matrix products of SmolLM2's shapes, and 4.99 HH-RLHF pairs/s of two.
DEVICES: dict[Device, Peak] = {
    "h100": Peak(989e12, 80e9, 0.4, measured=False),
    "h200": Peak(989e12, 141e9, 0.4, measured=False),
    "a100": Peak(312e12, 80e9, 0.4, measured=False),
    "l40s": Peak(362e12, 48e9, 0.4, measured=False),
    "cpu": Peak(0.2e12, 0, 0.62, measured=True),
}


_TRAIN = TrainConfig.model_fields


class PlanConfig(DataConfig):
    """What a cache and a training run over it would take."""

    gpu: Device = Field("h100", description="What it is to run on; 'cpu': cores with AVX-512.")
    gpus: int = Field(1, ge=1, description="How many of them; of 'cpu', how many cores.")
    sample: int = Field(
        2000, ge=0, description="Rows to tokenize, evenly over the data; 0: all of them."
    )
    tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="Measured: sequence tokens a second of stage one on one GPU (or core), as "
        "`reflogp inspect` prints its speed. Takes the place of the throughput model.",
    )
    efficiency: float | None = Field(
        None, gt=0, le=1, description="Share of the peak that stage one reaches (see docs/plan.md)."
    )
    price: float | None = Field(None, ge=0, description="Of one GPU (or core) for an hour.")
    batch_size: int = Field(2, ge=1, description=_TRAIN["batch_size"].description)
    lora_r: int = Field(8, ge=0, description=_TRAIN["lora_r"].description)
    lora_targets: str | None = Field(None, description=_TRAIN["lora_targets"].description)
    gradient_checkpointing: bool = Field(
        False, description=_TRAIN["gradient_checkpointing"].description
    )
