"""Token ids -> planned shards, the units of work, written to disk before any is scored.

Writing the ids first costs a few bytes per token. In return the totals are known, so progress has
an ETA; memory stays flat; a killed run resumes without reading the data again; and many jobs can
share the work. A plan exists only until its cache is sealed.
"""

import gc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from reflogp.data_schemas.cache_shard import PLAN_SCHEMA
from reflogp.data_schemas.errors import ReflogpError
from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.stages.cache.columns import list_column
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow

_LARGEST = 4  # times the wanted size, for many rows with the same prompt

_FIELDS = attrgetter(*PLAN_SCHEMA.names)


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One unit of work: a file of token ids, with its numbers of rows and tokens to score."""

    number: int
    path: Path
    rows: int
    tokens: int
    sha256: str


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Exclude existing objects from garbage collection in the block.

    The many short-lived rows trigger a full collection every few shards, which would take as long
    as all the other work here.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_only_new_garbage()
def write_plan(rows: Iterable[TokenizedRow], folder: Path, shard_tokens: int) -> list[PlannedShard]:
    """Write `rows` into shards of about `shard_tokens` tokens to score each."""
    planned = []
    for number, (shard, tokens) in enumerate(_split(rows, shard_tokens)):
        # rows with the same prompt become adjacent, so an engine's prefix cache can reuse it
        shard.sort(key=lambda row: (bytes(row.prompt_ids), row.source_row))
        columns = map(_column, zip(*map(_FIELDS, shard), strict=True), PLAN_SCHEMA)
        table = pa.table(list(columns), schema=PLAN_SCHEMA)
        planned.append(write_planned_shard(table, folder, number, tokens))
    return planned


def write_planned_shard(table: pa.Table, folder: Path, number: int, tokens: int) -> PlannedShard:
    """Write rows of PLAN_SCHEMA as a planned shard with `tokens` tokens to score."""
    path = folder / f"plan-{number:05d}.arrow"
    content = _serialized(table)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return PlannedShard(number, path, table.num_rows, tokens, digest)


def read_plan(shard: PlannedShard) -> pa.Table:
    """Return the rows of a planned shard, as PLAN_SCHEMA.

    Raises:
        ReflogpError: the file is missing, or its content has changed since it was planned.
    """
    try:
        content = read_bytes(shard.path)
    except FileNotFoundError as error:
        raise ReflogpError(
            f"{shard.path}: the plan has been removed; another job may have sealed the cache. Run "
            "the command again."
        ) from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise damaged(shard.path)
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        table.validate(full=True)  # IPC does not check offsets
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        raise damaged(shard.path) from error
    if not table.schema.equals(PLAN_SCHEMA) or table.num_rows != shard.rows:
        raise damaged(shard.path)
    return table


def damaged(path: Path) -> ReflogpError:
    """Return the error for a plan's file whose content has changed."""
    return ReflogpError(
        f"{path}: damaged: its content has changed since it was planned. Delete {path.parent} and "
        "run the command again; finished shards are kept."
    )


def _column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    per_token = pa.types.is_list(field.type) and pa.types.is_primitive(field.type.value_type)
    return list_column(values, field.type) if per_token else pa.array(values, field.type)


def _serialized(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def scored_tokens(row: TokenizedRow) -> int:
    """Count the tokens of all prompt + response sequences of `row`, with no shared prompts."""
    responses = [ids for ids in (row.chosen_ids, row.rejected_ids, row.kl_ids) if ids is not None]
    return len(responses) * len(row.prompt_ids) + sum(map(len, responses))


def _split(
    rows: Iterable[TokenizedRow], shard_tokens: int
) -> Iterator[tuple[list[TokenizedRow], int]]:
    """Yield the rows of each shard and its number of tokens to score."""
    shard: list[TokenizedRow] = []
    tokens, prompt = 0, None
    for row in rows:
        # rows with the same prompt stay together, unless they would take too much memory
        full = tokens >= shard_tokens and row.prompt_ids != prompt
        if full or tokens >= _LARGEST * shard_tokens:
            yield shard, tokens
            shard, tokens = [], 0
        shard.append(row)
        prompt = row.prompt_ids
        tokens += scored_tokens(row)
    if shard:
        yield shard, tokens
