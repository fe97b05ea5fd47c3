"""The record of a finished training run, stored with its model. It marks the run as done."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.filtered import RowWeights
from reflogp.data_schemas.record import MOST_BYTES

FILE_NAME = "reflogp_run.json"
SCHEMA_VERSION = 1


class _Tolerant(BaseModel):
    """A frozen model that ignores fields of later releases."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StepMetrics(_Tolerant):
    """Mean metrics over the pairs of one or more optimizer steps, before each step's update."""

    loss: float
    margin: float = Field(description="rewards/margins.")
    accuracy: float = Field(description="rewards/accuracies.")
    margin_per_token: float | None = Field(None, description="rewards/margins_per_token.")
    accuracy_per_token: float | None = Field(None, description="rewards/accuracies_per_token.")


class RunWarning(_Tolerant):
    """A training problem that the metrics show."""

    code: str = Field(description="Name of the warning, for programs.")
    message: str = Field(description="One sentence, with the figures of the latest sighting.")
    remedy: str = Field(description="What to change.")
    first_step: int = Field(description="Optimizer step at which the problem was first seen.")
    last_step: int = Field(description="Last checked step at which it was seen.")

    def __str__(self) -> str:
        """One line for people."""
        return f"steps {self.first_step} to {self.last_step}: {self.message} {self.remedy}"


class RunRecord(_Tolerant):
    """What was trained, from what, and with what result."""

    schema_version: int = SCHEMA_VERSION
    reflogp_version: str
    fingerprint: str = Field(description="SHA-256 of the run's inputs: cache, policy, settings.")
    cache: str
    policy: str
    adapter: str | None = Field(
        None, description="Folder of the LoRA adapter that training started from, if any."
    )
    settings: dict[str, Any]
    kind: Literal["paired", "unpaired"] = Field("paired", description="Of the cache.")
    weights: RowWeights | None = Field(
        None, description="The cache's row weights, which scaled each row's loss, if it has any."
    )
    pairs: int = Field(description="Pairs, or unpaired rows, trained on.")
    evaluated_pairs: int = Field(0, description="Pairs held out for evaluation.")
    steps: int
    processes: int = 1
    trained_parameters: int
    first: StepMetrics = Field(description="The first step: policy equals reference.")
    first_margin_noise: float | None = Field(
        description="Standard deviation of the first margin due to rounding, without which it is "
        "0; from the cache's verification. None for losses without a reference."
    )
    last: StepMetrics = Field(description="Mean over the last quarter of the steps.")
    evaluation: StepMetrics | None = Field(
        None, description="Metrics of the kept weights over the held-out pairs."
    )
    best_step: int | None = Field(
        None, description="The step whose weights were kept; None if the last step's were."
    )
    resumed_from: int | None = Field(
        None, description="The step of the checkpoint that the run resumed from, if it did."
    )
    warnings: list[RunWarning] = Field([], description="Problems, in the order first seen.")
    started_at: datetime
    seconds: float
    pairs_per_second: float


def write(output: Path, record: RunRecord) -> None:
    """Mark the run in `output` as done."""
    write_text(output / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def read(output: Path) -> RunRecord | None:
    """Return the record in `output`, or None if no run has finished there.

    Unknown fields, which a later release can have written, are ignored.

    Raises:
        InputError: the record cannot be read.
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
            f"{path}: this run record is damaged, or of a release that this reflogp cannot read: "
            f"{reason}."
        ) from error
