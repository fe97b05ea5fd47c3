"""Token ids -> planned shards: the units of work, on disk before any is scored.

Writing the ids first costs a few bytes a token and buys much: the totals are known, so progress has
an ETA; memory stays flat; a run that was killed goes on without reading the data again; and many
jobs can share the work. A plan lives only until its cache is sealed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_schemas.atomic import atomic_path
from data_schemas.cache_shard import PLAN_SCHEMA
from data_schemas.errors import ReflogpError
from data_schemas.storage import read_bytes
from stages.precompute.columns import list_column
from stages.precompute.row_ids import int32_bytes
from stages.precompute.tokenize import TokenizedRow

_LARGEST = 4  # times the wanted size, where all rows have one prompt

_Packed = tuple[Any, ...]
"""A row's fields in the order of PLAN_SCHEMA, ids as int32: 4 bytes a token, not 36 as a list."""


def _are_ids(field: pa.Field) -> bool:
    return bool(pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type))


_FIELDS = attrgetter(*PLAN_SCHEMA.names)
_IS_IDS = tuple(map(_are_ids, PLAN_SCHEMA))
_PROMPT_AND_SOURCE = itemgetter(*map(PLAN_SCHEMA.names.index, ("prompt_ids", "source_row")))


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One unit of work: a file of token ids, and how much there is to score in it."""

    number: int
    path: Path
    rows: int
    tokens: int
    sha256: str


def write_plan(rows: Iterable[TokenizedRow], folder: Path, shard_tokens: int) -> list[PlannedShard]:
    """Write `rows` into shards of about `shard_tokens` tokens to score each."""
    planned = []
    for number, (shard, tokens) in enumerate(_split(rows, shard_tokens)):
        path = folder / f"plan-{number:05d}.arrow"
        # Rows of one prompt side by side: an engine that keeps prompts reads the second from cache.
        shard.sort(key=_PROMPT_AND_SOURCE)
        columns = map(_column, zip(*shard, strict=True), PLAN_SCHEMA)
        content = _serialized(pa.table(list(columns), schema=PLAN_SCHEMA))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        planned.append(PlannedShard(number, path, len(shard), tokens, digest))
    return planned


def read_plan(shard: PlannedShard) -> pa.Table:
    """The rows of a planned shard, as PLAN_SCHEMA.

    Raises:
        ReflogpError: the file is gone, or its content is not what was planned.
    """
    try:
        content = read_bytes(shard.path)
    except FileNotFoundError as error:
        raise ReflogpError(
            f"{shard.path}: the plan is gone; another job may have sealed the cache. Run the "
            "command again."
        ) from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise damaged(shard.path)
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def damaged(path: Path) -> ReflogpError:
    """The error for a file of a plan whose content is not what was planned."""
    return ReflogpError(
        f"{path}: damaged: its content is not what was planned. Delete {path.parent} and run the "
        "command again; finished shards are kept."
    )


def _packed(row: TokenizedRow) -> _Packed:
    fields = zip(_FIELDS(row), _IS_IDS, strict=True)
    return tuple(int32_bytes(v) if is_ids and v is not None else v for v, is_ids in fields)


def _column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if not _are_ids(field):
        return pa.array(values, field.type)
    ids = [None if value is None else np.frombuffer(value, np.int32) for value in values]
    return list_column(ids, field.type)


def _serialized(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def scored_tokens(row: TokenizedRow) -> int:
    """Tokens of every prompt + response sequence of `row`: what an engine without sharing runs."""
    responses = [ids for ids in (row.chosen_ids, row.rejected_ids, row.kl_ids) if ids is not None]
    return len(responses) * len(row.prompt_ids) + sum(map(len, responses))


def _split(rows: Iterable[TokenizedRow], shard_tokens: int) -> Iterator[tuple[list[_Packed], int]]:
    """The rows of each shard, and its tokens to score."""
    shard: list[_Packed] = []
    tokens, prompt = 0, None
    for row in rows:
        # Rows of one prompt stay together, unless there are so many that memory would tell.
        full = tokens >= shard_tokens and row.prompt_ids != prompt
        if full or tokens >= _LARGEST * shard_tokens:
            yield shard, tokens
            shard, tokens = [], 0
        shard.append(_packed(row))
        prompt = row.prompt_ids
        tokens += scored_tokens(row)
    if shard:
        yield shard, tokens
