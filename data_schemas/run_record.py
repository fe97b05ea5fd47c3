"""The record of a finished training run, beside its model. Its presence marks the run as done."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.filtered import Weights
from reflogp.data_schemas.record import MOST_BYTES

FILE_NAME = "reflogp_run.json"
SCHEMA_VERSION = 1


class _Tolerant(BaseModel):
    """A frozen model that leaves out fields of later releases."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StepMetrics(_Tolerant):
    """Means over the pairs of one or more optimizer steps, before each step's update."""

    loss: float
    margin: float = Field(description="rewards/margins.")
    accuracy: float = Field(description="rewards/accuracies.")
    margin_per_token: float | None = Field(None, description="rewards/margins_per_token.")
    accuracy_per_token: float | None = Field(None, description="rewards/accuracies_per_token.")


class RunWarning(_Tolerant):
    """Something that went wrong in training, seen in its metrics."""

    code: str = Field(description="Its name, for programs.")
    message: str = Field(description="One sentence with the figures of the last time it was seen.")
    remedy: str = Field(description="What to change.")
    first_step: int = Field(description="The optimizer step at which it was first seen.")
    last_step: int = Field(description="The last look at which it still held; at best the end.")

    def __str__(self) -> str:
        """As people read it."""
        return f"steps {self.first_step} to {self.last_step}: {self.message} {self.remedy}"


class RunRecord(_Tolerant):
    """What was trained, from what, and what came out."""

    schema_version: int = SCHEMA_VERSION
    reflogp_version: str
    fingerprint: str = Field(description="SHA-256 of the run's inputs: cache, policy, settings.")
    cache: str
    policy: str
    adapter: str | None = Field(
        None, description="Folder of the LoRA adapter that training started from."
    )
    settings: dict[str, Any]
    kind: Literal["paired", "unpaired"] = Field("paired", description="Of the cache.")
    weights: Weights | None = Field(
        None, description="Of the cache, by which each row's loss was multiplied. None: all alike."
    )
    pairs: int = Field(description="Or unpaired rows, that were trained on.")
    evaluated_pairs: int = Field(0, description="That were held out, to evaluate on.")
    steps: int
    processes: int = 1
    trained_parameters: int
    first: StepMetrics = Field(description="The first step: policy equals reference.")
    first_margin_noise: float | None = Field(
        description="Standard deviation that rounding alone gives the first margin, which is 0 but "
        "for it; from the cache's verification. None for losses without a reference."
    )
    last: StepMetrics = Field(description="Mean over the last quarter of the steps.")
    evaluation: StepMetrics | None = Field(
        None, description="Of the weights that were kept, over the held-out pairs."
    )
    best_step: int | None = Field(
        None, description="The step whose weights were kept; None: the last one's."
    )
    resumed_from: int | None = Field(
        None, description="The step of the checkpoint that the run went on from, if it did."
    )
    warnings: list[RunWarning] = Field([], description="What went wrong, first seen first.")
    started_at: datetime
    seconds: float
    pairs_per_second: float


def write(output: Path, record: RunRecord) -> None:
    """Mark the run in `output` as done."""
    write_text(output / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def read(output: Path) -> RunRecord | None:
    """The record in `output`; None where no run has ended there.

    Fields that this reflogp does not know, from a later release, are left out.

    Raises:
        InputError: there is one that cannot be read.
    """
    path = output / FILE_NAME
    try:
        content = read_bytes(path, MOST_BYTES)
        return RunRecord.model_validate(from_json(content, allow_inf_nan=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: damaged, or not a record that this reflogp can read: {reason}."
        ) from error
