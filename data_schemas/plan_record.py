"""The plan of a cache that is being made: `plan-<digest>/plan.json`, written when it is complete.

It holds all that sealing needs besides the finished shards, so that any job can do any part of the
work, and `reflogp merge` the last, without reading the data again.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.manifest import Inputs
from reflogp.data_schemas.reading import Reading
from reflogp.data_schemas.record import MOST_BYTES, SealedRecord
from reflogp.data_schemas.sealed_file import Shard

FILE_NAME = "plan.json"
SCHEMA_VERSION: Literal[3] = 3


class PlanRecord(SealedRecord):
    """Everything about a plan."""

    schema_version: Literal[3] = Field(description="Of its Arrow files, as that of shards.")
    reflogp_version: str
    inputs: Inputs
    kind: Literal["paired", "unpaired"]
    form: str = Field(description="The input form that was detected.")
    reading: Reading | None = Field(
        None, description="What reading the preferences found; None: an earlier release made it."
    )
    rows_read: int = Field(ge=0, description="Rows read, the quarantined ones included.")
    template_diverged: int = Field(ge=0)
    stop_token_ids: list[int]
    shards: list[Shard] = Field(description="The planned shards; `tokens` are those to score.")
    quarantine: Shard = Field(description="The rows that could not be planned.")
    quarantined_by_reason: dict[str, int]
    quarantine_summary: str
    config: dict[str, Any] = Field(description="The configuration that made it.")
    reference: str = Field(description="Folder of the checkpoint.")
    adapter: str | None = Field(description="Folder of the LoRA adapter on top of it.")
    dtype: Literal["bfloat16", "float16", "float32"]
    engine: dict[str, str] = Field(description="Name, version and reason of the engine.")


def write(folder: Path, record: PlanRecord) -> None:
    """Mark the plan in `folder` as complete."""
    write_text(folder / FILE_NAME, record.sealed_json() + "\n")


def read(folder: Path) -> PlanRecord | None:
    """The plan in `folder`; None where there is none, or one of another release or damaged."""
    try:
        return PlanRecord.from_sealed_json(read_bytes(folder / FILE_NAME, MOST_BYTES))
    except (OSError, ValueError):
        return None
