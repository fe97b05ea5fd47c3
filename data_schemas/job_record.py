"""One run of stage one: who, when, where, with what, how fast. The manifest keeps all of them.

While a cache is being made each job has a file of its own, `job-<digest>-<id>.json`, which it
rewrites after every shard; so a job that was killed is accounted for, too.
"""

from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Count, Record


class JobRecord(Record):
    """One run of `reflogp precompute` that worked on the cache."""

    started_at: AwareDatetime
    seconds: float = Field(ge=0, description="Until the last shard it finished, or its end.")
    scoring_seconds: float = Field(ge=0, description="Inside the engine, its start not included.")
    scored_tokens: Count = Field(description="Sequence tokens that it scored.")
    shards: Count = Field(description="Shards that it finished.")
    user: str
    machine: str = Field(description="Host, system and processor.")
    device: str = Field(description="Kind and number of the devices that it could use.")
    versions: dict[str, str] = Field(description="Of Python and of the libraries that matter.")
    command: list[str]


def write(path: Path, record: JobRecord) -> None:
    """Write or rewrite the record of a job."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def read(path: Path) -> JobRecord | None:
    """The record at `path`; None where it cannot be read, for it is an account and no result."""
    try:
        return JobRecord.model_validate_json(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError, ValidationError):
        return None
