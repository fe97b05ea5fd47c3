"""What a user can set of stage two. Each field is a YAML key and a command-line option."""

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
    """Stage two: train the policy against a cache; no reference model is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cache: Location = Field(description="Folder or URL of a sealed cache.")
    output: Path = Field(description="Folder for the adapter or model, its card and its metrics.")
    overwrite: bool = Field(
        False,
        description="Let --output hold a result of reflogp's of another kind (but no cache) or "
        "version, which the run replaces when it is whole. What reflogp did not write stays.",
    )
    policy: str | None = Field(
        None,
        description="Checkpoint that training starts from: a folder or hub id. It must be the "
        "cache's reference, which is also the default.",
    )
    adapter: Place | None = Field(
        None,
        description="LoRA adapter that training starts from, on top of --policy: a folder or hub "
        "id. It must be the one that the reference was scored with, which is also the default "
        "where --policy is not given. A copy of it is trained further, with its own rank, alpha "
        "and modules; with --lora-r 0 it is merged first. For a new adapter on top of it, merge "
        "it yourself and precompute a cache for the result.",
    )
    loss: LossSpec = Field(
        "dpo",
        description="What is minimized over the pairs, or over unpaired rows: a name, or names "
        "with weights (dpo=1,sft=0.2). --list-losses prints them.",
    )
    beta: float = Field(
        default_factory=lambda given: default_beta(given["loss"]),
        gt=0,
        description="Pull towards the reference: 0.01 to 0.5. Default: that of the (first) "
        "loss, as --list-losses prints it; 0.1 for DPO.",
    )
    loss_args: Arguments = Field(
        default_factory=dict,
        description="More arguments of the loss: name=value,name=value. --list-losses prints them.",
    )
    weighting: Literal["none", "wpo"] = Field(
        "none", description="'wpo' weighs each pair by how likely the policy is to write it."
    )
    lora_r: int = Field(8, ge=0, description="Rank of the LoRA adapter; 0 trains all weights.")
    lora_alpha: float = Field(16, gt=0, description="LoRA scale: alpha / r times the update.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the adapter.")
    lora_targets: str | None = Field(
        None,
        description="Modules that get an adapter: names with commas, or 'all-linear', which is "
        "the default: every linear layer but the head and, in a mixture of experts, the router.",
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="'nf4' rounds the frozen weights under the LoRA adapter to 4 bits (QLoRA), "
        "which takes bitsandbytes. The policy then starts a little away from the reference that "
        "was scored; how far is said before the first step.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak rate. Default: 5e-5 with LoRA, 1e-6 without."
    )
    schedule: Schedule = Field("linear", description="How the rate falls from its peak.")
    warmup: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the steps that warm up the rate, rounded down; the rate is never 0.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the cache.")
    max_steps: int = Field(
        -1, ge=-1, description="Stop after so many optimizer steps, 1 or more; -1: epochs."
    )
    batch_size: int = Field(2, ge=1, description="Pairs in one forward pass, on each device.")
    accumulation: int = Field(
        8,
        ge=1,
        description="Forward passes for one optimizer step, of all processes together: a step "
        "takes batch-size times accumulation pairs, however many processes share them.",
    )
    layout: Literal["auto", "shared", "separate"] = Field(
        "auto",
        description="'shared' computes a pair's prompt once, in one sequence with both responses; "
        "'separate' makes a sequence of each; 'auto' shares where the policy gives equal numbers.",
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0: do not.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, a third slower.",
    )
    eval_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the cache that is held out of training, to evaluate on; 0: none.",
    )
    eval_cache: Location | None = Field(
        None,
        description="A cache of other pairs, of the same reference, to evaluate on instead.",
    )
    checkpoint_steps: float = Field(
        0.2,
        ge=0,
        description="Evaluate, and save what a killed run goes on from, each so many steps; below "
        "1: each such share of them; 0: at the end only.",
    )
    best_metric: Literal["rewards/margins", "rewards/accuracies", "loss"] = Field(
        "loss",
        description="Of the evaluation: the checkpoint where it is best is the one that is kept.",
    )
    early_stopping: int = Field(
        0,
        ge=0,
        description="End after so many evaluations in a row that did not better --best-metric; "
        "0: do not.",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="What counts as better: by more than this."
    )
    keep_checkpoints: int = Field(
        0, ge=0, description="Checkpoints (with optimizer) that stay when the run is done."
    )
    resume: bool = Field(
        True, description="Go on from the last checkpoint of a run with the same settings."
    )
    grace_seconds: float = Field(
        30.0,
        ge=0,
        description="After SIGTERM, SIGHUP or Ctrl-C, how long the step may take to end and a "
        "checkpoint to be written; then the run ends without.",
    )
    stop_grad_norm: float = Field(
        0.0,
        ge=0,
        description="Stop where the gradient's norm, before it is clipped, is above this; 0: only "
        "where it is not finite.",
    )
    report_to: str = Field(
        "",
        description="Trackers that get the metrics too: names with commas, such as "
        "tensorboard,wandb.",
    )
    report_pairs: int = Field(
        64,
        ge=0,
        description="Pairs, held-out ones if there are any, that are scored once more at the end, "
        "token by token, for `reflogp report`.",
    )
    merge: bool = Field(
        False, description="Write the whole model with the LoRA adapter merged into it."
    )
    fsdp: bool = Field(
        False,
        description="Shard weights, gradients and optimizer over the processes (FSDP2) instead of "
        "a copy in each (DDP).",
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Of the order of the data and the adapter's start."
    )
    allow_mismatch: bool = Field(
        False, description="Train although the policy is not the checkpoint that was scored."
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
        if "loss" not in info.data:  # it is wrong itself, and will be said
            return value
        check = checked_arguments if info.field_name == "loss_args" else checked_weighting
        return check(info.data["loss"], value)

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, value: str) -> str:
        names = [name for name in value.split(",") if name]
        if unknown := [name for name in names if name not in _TRACKERS]:
            raise ValueError(
                f"there is no tracker {unknown[0]!r}; there are {', '.join(_TRACKERS)}"
            )
        return value

    @field_validator("max_steps")
    @classmethod
    def _trains(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing; leave it out for --epochs")
        return value

    @field_validator("checkpoint_steps")
    @classmethod
    def _share_or_whole_steps(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(
                "from 1 on it counts steps, so give a whole number, or a share below 1"
            )
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
        """The names in report_to."""
        return [name for name in self.report_to.split(",") if name]

    @property
    def losses(self) -> dict[str, float]:
        """The names of the losses, each with its weight."""
        return loss_weights(self.loss)

    @property
    def peak_rate(self) -> float:
        """The learning rate, or its default for what is trained."""
        return self.learning_rate or (5e-5 if self.lora_r else 1e-6)
