"""The plan of an unsealed cache: `plan-<digest>/plan.json`, written once the plan is complete.

The plan and the finished shards are all that sealing needs. Any job can therefore do any part of
the work, and `reflogp merge` can seal the cache, without reading the data again.
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
SCHEMA_VERSION: Literal[4] = 4


class PlanRecord(SealedRecord):
    """The full description of a plan."""

    schema_version: Literal[4] = Field(description="The shards' schema version.")
    reflogp_version: str
    inputs: Inputs
    kind: Literal["paired", "unpaired"]
    form: str = Field(description="The detected input form.")
    reading: Reading | None = Field(
        None, description="What reading the preferences found; None in plans of earlier releases."
    )
    rows_read: int = Field(ge=0, description="Rows read, including quarantined ones.")
    template_diverged: int = Field(ge=0)
    stop_token_ids: list[int]
    shards: list[Shard] = Field(description="The planned shards; `tokens` counts those to score.")
    quarantine: Shard = Field(description="The rows that could not be planned.")
    quarantined_by_reason: dict[str, int]
    quarantine_summary: str
    config: dict[str, Any] = Field(description="The configuration of the command that planned.")
    reference: str = Field(description="Folder of the checkpoint.")
    adapter: str | None = Field(description="Folder of the LoRA adapter, if there is one.")
    dtype: Literal["bfloat16", "float16", "float32"]
    engine: dict[str, str] = Field(description="Name, version and reason of the engine.")


def write(folder: Path, record: PlanRecord) -> None:
    """Mark the plan in `folder` as complete."""
    write_text(folder / FILE_NAME, record.sealed_json() + "\n")


def read(folder: Path) -> PlanRecord | None:
    """Return the plan in `folder`; None if it is missing, damaged or of another release."""
    try:
        return PlanRecord.from_sealed_json(read_bytes(folder / FILE_NAME, MOST_BYTES))
    except (OSError, ValueError):
        return None
