"""Random rows a shard at a time: planned, and scored at random, with no work for single rows.

What a row costs the planner and the engine's side, benchmarks/overhead.py measures. Here are files
as the two leave them, written by the very functions, for what comes after.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas.cache_shard import PLAN_SCHEMA, RESPONSES, SHARD_SCHEMA, unweighted
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, write_planned_shard
from reflogp.stages.precompute.score.engines.shared_beginnings import Requests
from reflogp.stages.precompute.score.score_shard import Place, ScoredTable

_LISTS = ("prompt_ids", "chosen_ids", "rejected_ids")
_FLAGS = ("prompt_truncated", "chosen_truncated", "rejected_truncated")


def write_plan(folder: Path, count: int, tokens: int, shard_rows: int) -> list[PlannedShard]:
    """Plan `count` rows of three lists of `tokens`."""
    random, shards = np.random.default_rng(0), list[PlannedShard]()
    for start in range(0, count, shard_rows):
        some = min(shard_rows, count - start)
        drawn = random.integers(0, 50_000, (3, some, tokens), np.int32)
        scored = 4 * tokens * some  # each prompt with each of two responses
        shards.append(write_planned_shard(_rows(drawn, start), folder, len(shards), scored))
    return shards


def _rows(drawn: NDArray[np.int32], start: int) -> pa.Table:
    """Rows of PLAN_SCHEMA from their ids [3, rows, tokens]; no other rows have the same."""
    _, count, tokens = drawn.shape
    # the id is a hash of the three lists, each after its length, as in row_ids.content_hash
    hashed = np.insert(drawn, 0, tokens, axis=2).transpose(1, 0, 2).reshape(count, -1)
    row_ids = [blake2b(row.tobytes(), digest_size=16).hexdigest() for row in hashed]
    ends = pa.array(np.arange(0, count * tokens + 1, tokens, np.int32))
    lists = [pa.ListArray.from_arrays(ends, pa.array(ids.ravel())) for ids in drawn]
    known = dict(zip(_LISTS, lists, strict=True))
    known |= dict.fromkeys(_FLAGS, pa.array(np.zeros(count, np.bool_)))
    known |= {"row_id": pa.array(row_ids), "source_row": pa.array(start + np.arange(count))}
    columns = [known.get(field.name, pa.nulls(count, field.type)) for field in PLAN_SCHEMA]
    return pa.table(columns, PLAN_SCHEMA.names).cast(PLAN_SCHEMA)


def requests_of(_: pa.Table) -> tuple[list[Place], Requests]:
    """No requests: the scores do not come from the engine."""
    return [], Requests()


def scored_table(table: pa.Table, *_: Any) -> ScoredTable:
    """Rows of PLAN_SCHEMA with random log-probs."""
    count, random = table.num_rows, np.random.default_rng(0)
    for side in RESPONSES:
        ids = table.column(f"{side}_ids").combine_chunks()
        tokens, whole = (SHARD_SCHEMA.field(f"ref_{side}_{n}") for n in ("logps", "logp_sum"))
        logps, sums = pa.nulls(count, tokens.type), pa.nulls(count, whole.type)
        if not ids.null_count:
            drawn = -random.random(len(ids.values), np.float32)
            logps = pa.ListArray.from_arrays(ids.offsets, pa.array(drawn), type=tokens.type)
            sums = pa.array(np.add.reduceat(drawn, ids.offsets[:-1].to_numpy(), dtype=np.float64))
        table = table.append_column(tokens, logps).append_column(whole, sums)
    return ScoredTable(unweighted(table), [], 0)
