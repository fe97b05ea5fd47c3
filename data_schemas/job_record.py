"""One run of stage one: who, when, where, with what, how fast. The manifest lists every run.

Until the cache is sealed, each job has its own file, `job-<digest>-<id>.json`. The job rewrites it
after every shard, so killed jobs are recorded too.
"""

from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Count, Record


class JobRecord(Record):
    """One run of `reflogp precompute` that worked on the cache."""

    started_at: AwareDatetime
    seconds: float = Field(ge=0, description="Until its last finished shard, or its end.")
    scoring_seconds: float = Field(ge=0, description="Inside the engine, start-up excluded.")
    scored_tokens: Count = Field(description="Tokens of all sequences that it scored.")
    shards: Count = Field(description="Shards that it finished.")
    user: str
    machine: str = Field(description="Host, system and processor.")
    device: str = Field(description="Kind and number of the available devices.")
    versions: dict[str, str] = Field(description="Of Python and the main libraries.")
    command: list[str]


def write(path: Path, record: JobRecord) -> None:
    """Write or rewrite the record of a job."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def read(path: Path) -> JobRecord | None:
    """Return the record at `path`, or None if it is unreadable: no result depends on it."""
    try:
        return JobRecord.model_validate_json(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError, ValidationError):
        return None
