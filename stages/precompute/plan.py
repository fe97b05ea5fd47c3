"""Token ids -> planned shards: the units of work, on disk before any is scored.

Writing the ids first costs a few bytes a token and buys much: the totals are known, so progress has
an ETA; memory stays flat; a run that was killed goes on without reading the data again; and many
jobs can share the work. A plan lives only until its cache is sealed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_schemas.atomic import atomic_path
from data_schemas.cache_shard import PLAN_SCHEMA
from data_schemas.errors import ReflogpError
from data_schemas.storage import read_bytes
from stages.precompute.tokenize import TokenizedRow


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
    for number, shard in enumerate(_split(rows, shard_tokens)):
        path = folder / f"plan-{number:05d}.arrow"
        # Rows of one prompt side by side: an engine that keeps prompts reads the second from cache.
        shard.sort(key=lambda row: (row.prompt_ids, row.source_row))
        columns = {name: [getattr(row, name) for row in shard] for name in PLAN_SCHEMA.names}
        content = _serialized(pa.table(columns, schema=PLAN_SCHEMA))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        tokens = sum(map(scored_tokens, shard))
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


def _serialized(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def scored_tokens(row: TokenizedRow) -> int:
    """Tokens of every prompt + response sequence of `row`: what an engine without sharing runs."""
    return sum(
        len(row.prompt_ids) + len(ids)
        for ids in (row.chosen_ids, row.rejected_ids, row.kl_ids)
        if ids is not None
    )


def _split(rows: Iterable[TokenizedRow], shard_tokens: int) -> Iterator[list[TokenizedRow]]:
    shard: list[TokenizedRow] = []
    tokens = 0
    for row in rows:
        # A new shard starts only at a new prompt, so that rows of one prompt stay together.
        if tokens >= shard_tokens and row.prompt_ids != shard[-1].prompt_ids:
            yield shard
            shard, tokens = [], 0
        shard.append(row)
        tokens += scored_tokens(row)
    if shard:
        yield shard
