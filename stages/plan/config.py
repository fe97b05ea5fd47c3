"""What a user can set of a plan; what both stages know too goes by their names and defaults."""

from pydantic import Field

from stages.plan.devices import Device
from stages.precompute.config import DataConfig
from stages.train.config import TrainConfig

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
