"""The options of stage two. Each field is a YAML key and a command-line option."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.location import Location, Place, on_disk
from reflogp.stages.assignments import Arguments
from reflogp.stages.train.losses.loss_spec import (
    LossSpec,
    checked_arguments,
    checked_weighting,
    default_beta,
    loss_weights,
)
from reflogp.stages.train.schedule import Schedule

_TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "trackio")


class TrainConfig(BaseModel):
    """Stage two: train the policy against a cache, without loading the reference model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cache: Location = Field(description="Folder or URL of a sealed cache.")
    output: Path = Field(description="Folder for the adapter or model, its card and its metrics.")
    overwrite: bool = Field(
        False,
        description="Allow --output to hold a result of another kind (but not a cache) or version "
        "of reflogp. The run replaces it at the end. Files that reflogp did not write stay.",
    )
    policy: str | None = Field(
        None,
        description="Checkpoint that training starts from: a folder or Hub id. It must be the "
        "cache's reference, which is also the default.",
    )
    adapter: Place | None = Field(
        None,
        description="LoRA adapter on top of --policy that training starts from: a folder or Hub "
        "id. It must be the one that the reference was scored with, which is also the default if "
        "--policy is not given. Training continues with a copy of it, which keeps its rank, alpha "
        "and modules; --lora-r 0 merges it first. To train a new adapter on top, merge this one "
        "yourself and precompute a cache for the result.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code from the policy's folder, as the cache was made with it.",
    )
    loss: LossSpec = Field(
        "dpo",
        description="Loss of pairs or unpaired rows: a name, or names with weights "
        "(dpo=1,sft=0.2). --list-losses prints all of them.",
    )
    beta: float = Field(
        default_factory=lambda given: default_beta(given["loss"]),
        gt=0,
        description="Strength of the pull towards the reference, usually 0.01 to 0.5. Default: "
        "that of the first loss, which --list-losses prints; 0.1 for DPO.",
    )
    loss_args: Arguments = Field(
        default_factory=dict,
        description="Further arguments of the loss: name=value,name=value. --list-losses prints "
        "them.",
    )
    weighting: Literal["none", "wpo"] = Field(
        "none", description="'wpo' weights each pair by how likely the policy is to write it."
    )
    lora_r: int = Field(8, ge=0, description="Rank of the LoRA adapter; 0 trains all weights.")
    lora_alpha: float = Field(16, gt=0, description="LoRA scales its update by alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the adapter.")
    lora_targets: str | None = Field(
        None,
        description="Modules that get an adapter: names separated by commas, or 'all-linear' "
        "(default): all linear layers except the head and, in a mixture of experts, the router.",
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="'nf4' rounds the frozen weights under the LoRA adapter to 4 bits (QLoRA). It "
        "needs bitsandbytes. The policy then starts slightly away from the scored reference; a "
        "warning before the first step says how far.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate. Default: 5e-5 with LoRA, 1e-6 without."
    )
    schedule: Schedule = Field("linear", description="Decay of the learning rate from its peak.")
    warmup: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the steps for warm-up, rounded down. The learning rate is never 0.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the cache.")
    max_steps: int = Field(
        -1, ge=-1, description="Number of optimizer steps; -1: --epochs decides."
    )
    batch_size: int = Field(2, ge=1, description="Pairs per forward pass on each device.")
    accumulation: int = Field(
        8,
        ge=1,
        description="Forward passes per optimizer step, over all processes together: a step has "
        "batch-size times accumulation pairs, for any number of processes.",
    )
    layout: Literal["auto", "shared", "separate"] = Field(
        "auto",
        description="'shared' computes a pair's prompt once, in one sequence with both responses; "
        "'separate' uses one sequence per response; 'auto' shares if the policy gives the same "
        "numbers.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Clip the norm of the gradient to this; 0: no clipping."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, a third slower.",
    )
    eval_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the cache to hold out of training and evaluate on; 0: none.",
    )
    eval_cache: Location | None = Field(
        None,
        description="A cache with other pairs and the same reference, to evaluate on instead.",
    )
    checkpoint_steps: float = Field(
        0.2,
        ge=0,
        description="Evaluate and save a checkpoint, from which a killed run resumes, every this "
        "many steps; below 1: every such share of the steps; 0: evaluate only at the end.",
    )
    best_metric: Literal["rewards/margins", "rewards/accuracies", "loss"] = Field(
        "loss",
        description="Metric of the evaluation that decides which checkpoint is kept.",
    )
    early_stopping: int = Field(
        0,
        ge=0,
        description="Stop after this many evaluations in a row without a better --best-metric; "
        "0: never.",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="Improvements up to this do not count for --early-stopping."
    )
    keep_checkpoints: int = Field(
        0, ge=0, description="Checkpoints (with optimizer) to keep when the run is finished."
    )
    resume: bool = Field(
        True, description="Resume from the last checkpoint of a run with the same settings."
    )
    grace_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds after SIGTERM, SIGHUP or Ctrl-C to finish the step and write a "
        "checkpoint. After that the run ends without one.",
    )
    stop_grad_norm: float = Field(
        0.0,
        ge=0,
        description="Stop if the norm of the gradient before clipping exceeds this; 0: stop only "
        "if it is not finite.",
    )
    report_to: str = Field(
        "",
        description="Trackers that also receive the metrics: names separated by commas, such as "
        "tensorboard,wandb.",
    )
    report_pairs: int = Field(
        64,
        ge=0,
        description="Pairs, held-out ones if there are any, to score again at the end, token by "
        "token, for `reflogp report`.",
    )
    merge: bool = Field(
        False, description="Write the full model with the LoRA adapter merged into it."
    )
    fsdp: bool = Field(
        False,
        description="Shard weights, gradients and optimizer over the processes (FSDP2) instead of "
        "a copy in each (DDP).",
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Seed for the order of the data and the new adapter."
    )
    allow_mismatch: bool = Field(
        False, description="Train even if the policy is not the checkpoint that was scored."
    )

    @field_validator("output", mode="before")
    @classmethod
    def _on_disk(cls, value: Any) -> Any:
        try:
            return on_disk(value) if isinstance(value, str | Path) else value
        except InputError as error:  # pydantic reports ValueErrors together, by option
            raise ValueError(str(error)) from error

    @field_validator("loss_args", "weighting")
    @classmethod
    def _fits_the_loss(cls, value: Any, info: ValidationInfo) -> Any:
        if "loss" not in info.data:  # it is invalid itself, which pydantic reports
            return value
        check = checked_arguments if info.field_name == "loss_args" else checked_weighting
        return check(info.data["loss"], value)

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, value: str) -> str:
        names = [name for name in value.split(",") if name]
        if unknown := [name for name in names if name not in _TRACKERS]:
            raise ValueError(
                f"there is no tracker {unknown[0]!r}; choose from {', '.join(_TRACKERS)}"
            )
        return value

    @field_validator("max_steps")
    @classmethod
    def _trains(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing; leave it out to use --epochs")
        return value

    @field_validator("checkpoint_steps")
    @classmethod
    def _share_or_whole_steps(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("give a whole number of steps, or a share below 1")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.eval_fraction and self.eval_cache is not None:
            raise ValueError("give --eval-fraction or --eval-cache, not both")
        if self.early_stopping and not self.evaluates:
            raise ValueError("--early-stopping needs --eval-fraction or --eval-cache")
        if self.early_stopping and not self.checkpoint_steps:
            raise ValueError("--early-stopping needs a --checkpoint-steps above 0")
        if self.quantize != "none" and not self.lora_r:
            raise ValueError("--quantize needs an adapter: a --lora-r above 0")
        if self.merge and not self.lora_r:
            raise ValueError("--merge needs an adapter: a --lora-r above 0")
        return self

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out pairs."""
        return bool(self.eval_fraction) or self.eval_cache is not None

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        return [name for name in self.report_to.split(",") if name]

    @property
    def losses(self) -> dict[str, float]:
        """The weight of each loss, by name."""
        return loss_weights(self.loss)

    @property
    def peak_rate(self) -> float:
        """The learning rate, or its default for LoRA or for all weights."""
        return self.learning_rate or (5e-5 if self.lora_r else 1e-6)
