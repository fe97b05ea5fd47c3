"""The record of a sweep, sweep.json, next to the folders of its runs."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Record
from reflogp.data_schemas.run_record import RunRecord

FILE_NAME = "sweep.json"


class SweepRun(Record):
    """One run of a sweep: one combination of settings."""

    folder: str = Field(description="Name of the run's folder inside the sweep's; never a path.")
    varied: dict[str, Any] = Field(description="This run's values of the varied settings.")
    status: Literal["waiting", "done", "failed"]
    error: str | None = Field(None, description="Why the run failed.")
    run: RunRecord | None = Field(None, description="The run's record, once it is done.")


class SweepRecord(Record):
    """All runs of a sweep, in order."""

    schema_version: int = 1
    reflogp_version: str
    cache: str
    runs: list[SweepRun]


def write(output: Path, record: SweepRecord) -> None:
    """Write sweep.json into `output`."""
    write_text(output / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def is_there(output: Path) -> bool:
    """Whether `output` has a readable sweep record."""
    try:
        SweepRecord.model_validate_json(read_bytes(output / FILE_NAME, MOST_BYTES))
    except (OSError, ValueError):
        return False
    return True
