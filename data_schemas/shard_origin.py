"""A finished shard's description of itself, in its Parquet metadata.

The file's footer alone tells another job that the shard is finished, which cache it belongs to, and
everything that the manifest records about it. The origin does not depend on when or how fast the
shard was made, so the same work gives the same bytes.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from reflogp.data_schemas.cache_shard import READABLE_VERSIONS
from reflogp.data_schemas.files.storage import read_end
from reflogp.data_schemas.record import Record, SealedRecord

_KEY = b"reflogp.origin"
_FOOTER_BYTES = 1 << 16  # larger than most footers


class Problem(Record):
    """A planned row that was left out of the shard because its scores are invalid."""

    row_id: str = Field("", description="Its row id; empty in shards of an earlier release.")
    source_row: int
    field: str = Field(description="The column of token ids that could not be scored.")
    detail: str


class Origin(SealedRecord):
    """Where a shard comes from, and its counts."""

    inputs: str = Field(description="Digest of all inputs of the cache it was made for.")
    scoring: str = Field(description="Digest of the inputs that decide the log-probs of given ids.")
    plan: str = Field(description="SHA-256 of the planned shard that it was made from.")
    number: int = Field(ge=0, description="Its position in the plan.")
    method: str = Field(description="How the engine computed log-probs, in words.")
    device: str
    prompt_tokens: int = Field(ge=0)
    chosen_tokens: int = Field(ge=0)
    rejected_tokens: int = Field(ge=0)
    kl_tokens: int = Field(0, ge=0)
    context_tokens: int = Field(
        0,
        ge=0,
        description="Tokens of responses that the policy does not write, in the counts above too.",
        # not written, as in the shards before masks, whose seals cover their fields only
        exclude_if=lambda count: count == 0,
    )
    truncated: int = Field(ge=0, description="Rows that lost tokens to max_length.")
    rescued: int = Field(
        ge=0, description="Responses with invalid log-probs that a second scoring fixed."
    )
    problems: list[Problem]

    @property
    def tokens(self) -> int:
        """Tokens of all rows; each row's prompt counts once."""
        return self.prompt_tokens + self.chosen_tokens + self.rejected_tokens + self.kl_tokens


def put_origin(table: pa.Table, origin: Origin) -> pa.Table:
    """Return `table` with `origin` in its metadata."""
    metadata = dict(table.schema.metadata or {})
    return table.replace_schema_metadata(metadata | {_KEY: origin.sealed_json().encode()})


def origin_of(table: pa.Table) -> Origin | None:
    """Return the origin in the metadata of `table`, or None if it has none."""
    try:
        return Origin.from_sealed_json((table.schema.metadata or {}).get(_KEY, b""))
    except ValueError:
        return None


def read_origin(path: Path) -> tuple[Origin, int] | None:
    """Return the origin and the number of rows of the shard at `path`.

    Returns None if the file is not a complete shard, or of another schema version.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(_footer(path)))
        found = metadata.metadata or {}
        if found.get(b"reflogp.schema_version", b"").decode() not in READABLE_VERSIONS:
            return None
        origin = found.get(_KEY, b"")
        return Origin.from_sealed_json(origin), metadata.num_rows
    except (OSError, ValueError, MemoryError, pa.ArrowException):
        return None


def _footer(path: Path) -> bytes:
    """Return the end of a Parquet file: its metadata, their length in 4 bytes, and the magic."""
    end = read_end(path, _FOOTER_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    return end if length <= len(end) else read_end(path, length)
