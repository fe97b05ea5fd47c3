"""What a finished shard says of itself, in its Parquet metadata.

It makes a shard stand by itself: another job sees that it is finished, whose it is, and what the
manifest must know of it, from the file's footer alone. Nothing in it depends on when or how fast
it was made, so that the same work gives the same bytes.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from reflogp.data_schemas.cache_shard import SCHEMA_VERSION
from reflogp.data_schemas.files.storage import read_end
from reflogp.data_schemas.record import Record, SealedRecord

_KEY = b"reflogp.origin"
_FOOTER_BYTES = 1 << 16  # more than most footers have


class Problem(Record):
    """A planned row that is not in the shard, because its scores cannot be right."""

    source_row: int
    field: str = Field(description="The column of token ids that could not be scored.")
    detail: str


class Origin(SealedRecord):
    """Where a shard comes from, and its counts."""

    inputs: str = Field(description="Digest of all inputs of the cache it was made for.")
    scoring: str = Field(description="Digest of what the log-probs of given token ids depend on.")
    plan: str = Field(description="SHA-256 of the planned shard that it was made from.")
    number: int = Field(ge=0, description="Its place in the plan.")
    method: str = Field(description="How the engine gave log-probs, in words.")
    device: str
    prompt_tokens: int = Field(ge=0)
    chosen_tokens: int = Field(ge=0)
    rejected_tokens: int = Field(ge=0)
    kl_tokens: int = Field(0, ge=0)
    truncated: int = Field(ge=0, description="Rows that lost tokens to max_length.")
    rescued: int = Field(
        ge=0, description="Responses whose log-probs could not be right until scored again."
    )
    problems: list[Problem]


def put_origin(table: pa.Table, origin: Origin) -> pa.Table:
    """`table` with `origin` in its metadata."""
    metadata = dict(table.schema.metadata or {})
    return table.replace_schema_metadata(metadata | {_KEY: origin.sealed_json().encode()})


def origin_of(table: pa.Table) -> Origin | None:
    """The origin in the metadata of `table`; None if there is none."""
    try:
        return Origin.from_sealed_json((table.schema.metadata or {}).get(_KEY, b""))
    except ValueError:
        return None


def read_origin(path: Path) -> tuple[Origin, int] | None:
    """The origin and the number of rows of the shard at `path`; None if it is no whole shard.

    One of another version is none either.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(_footer(path)))
        found = metadata.metadata or {}
        if found.get(b"reflogp.schema_version") != str(SCHEMA_VERSION).encode():
            return None
        origin = found.get(_KEY, b"")
        return Origin.from_sealed_json(origin), metadata.num_rows
    except (OSError, ValueError, MemoryError, pa.ArrowException):
        return None


def _footer(path: Path) -> bytes:
    """The end of a Parquet file: metadata, their length in 4 bytes, and 4 more."""
    end = read_end(path, _FOOTER_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    return end if length <= len(end) else read_end(path, length)
