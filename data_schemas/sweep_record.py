"""The record of a sweep, beside the folders of its runs: sweep.json."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Record
from reflogp.data_schemas.run_record import RunRecord

FILE_NAME = "sweep.json"


class SweepRun(Record):
    """One combination of settings."""

    folder: str = Field(description="The run's own, under that of the sweep; a plain name.")
    varied: dict[str, Any] = Field(description="The settings that set it apart.")
    status: Literal["waiting", "done", "failed"]
    error: str | None = Field(None, description="Why it failed.")
    run: RunRecord | None = Field(None, description="Its record, where it is done.")


class SweepRecord(Record):
    """All runs of a sweep, in their order."""

    schema_version: int = 1
    reflogp_version: str
    cache: str
    runs: list[SweepRun]


def write(output: Path, record: SweepRecord) -> None:
    """Write sweep.json into `output`."""
    write_text(output / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def is_there(output: Path) -> bool:
    """Whether a record of a sweep stands in `output`."""
    try:
        SweepRecord.model_validate_json(read_bytes(output / FILE_NAME, MOST_BYTES))
    except (OSError, ValueError):
        return False
    return True
