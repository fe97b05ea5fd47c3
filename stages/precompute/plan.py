"""Token ids -> planned shards: the units of work, on disk before any is scored.

Writing the ids first costs a few bytes a token and buys much: the totals are known, so progress has
an ETA; memory stays flat; and what is to be scored no longer depends on the source. A plan lives
only until its cache is sealed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_schemas.cache_shard import PLAN_SCHEMA
from stages.precompute.tokenize import TokenizedRow


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One unit of work: a file of token ids, and how much there is to score in it."""

    path: Path
    rows: int
    tokens: int


def write_plan(rows: Iterable[TokenizedRow], folder: Path, shard_tokens: int) -> list[PlannedShard]:
    """Write `rows` into shards of about `shard_tokens` tokens to score each."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = []
    for number, shard in enumerate(_split(rows, shard_tokens)):
        path = folder / f"plan-{number:05d}.arrow"
        # Rows of one prompt side by side: an engine that keeps prompts reads the second from cache.
        shard.sort(key=lambda row: (row.prompt_ids, row.source_row))
        columns = {name: [getattr(row, name) for row in shard] for name in PLAN_SCHEMA.names}
        # Neither fsynced nor renamed: a run that died makes its plan anew.
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, PLAN_SCHEMA) as writer:
            writer.write_table(pa.table(columns, schema=PLAN_SCHEMA))
        planned.append(PlannedShard(path, len(shard), sum(map(scored_tokens, shard))))
    return planned


def read_plan(shard: PlannedShard) -> pa.Table:
    """The rows of a planned shard, as PLAN_SCHEMA."""
    with pa.memory_map(str(shard.path)) as file:
        return pa.ipc.open_file(file).read_all()


def scored_tokens(row: TokenizedRow) -> int:
    """Tokens of every prompt + response sequence of `row`: what an engine without sharing runs."""
    return sum(
        len(row.prompt_ids) + len(ids)
        for ids in (row.chosen_ids, row.rejected_ids)
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
