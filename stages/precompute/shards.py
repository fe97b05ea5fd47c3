"""Planned shard + scorer -> finished shard on disk. No number gets in unchecked."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.atomic import atomic_path
from data_schemas.cache_shard import SHARD_SCHEMA
from data_schemas.manifest import Shard
from data_schemas.quarantine import Reason
from stages.precompute.faults import RowFault
from stages.precompute.scorers.protocol import Logps, Request, Scorer

_ROWS_AT_ONCE = 128  # asked of the engine in one call, between two steps of the progress bar
_ROUNDING = 1e-4  # a log-prob may exceed 0 by this much through the rounding of a log-sum-exp
_SIDES = ("chosen", "rejected")

Row = dict[str, Any]


def score_table(
    table: pa.Table, scorer: Scorer, advance: Callable[[float], None]
) -> tuple[pa.Table, list[tuple[Row, RowFault]]]:
    """Score every response of a planned shard.

    Args:
        table: rows of PLAN_SCHEMA.
        scorer: the engine.
        advance: told of each number of sequence tokens done.

    Returns:
        The finished rows as SHARD_SCHEMA, and the rows whose scores cannot be right, each with why.
    """
    finished: list[Row] = []
    faulty: list[tuple[Row, RowFault]] = []
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        rows = table.slice(start, _ROWS_AT_ONCE).to_pylist()
        wanted = [(row, side) for row in rows for side in _SIDES if row[f"{side}_ids"] is not None]
        requests = [Request(row["prompt_ids"], row[f"{side}_ids"]) for row, side in wanted]
        for row in rows:
            row |= {f"ref_{side}_{name}": None for side in _SIDES for name in ("logps", "logp_sum")}
        for (row, side), logps in zip(wanted, scorer.score(requests), strict=True):
            row[f"ref_{side}_logps"] = logps
            row[f"ref_{side}_logp_sum"] = float(np.sum(logps, dtype=np.float64))
        for row in rows:
            fault = _fault(row)
            if fault is None:
                finished.append(row)
            else:
                faulty.append((row, fault))
        advance(sum(len(r.prompt_ids) + len(r.response_ids) for r in requests))
    return pa.Table.from_pylist(finished, schema=SHARD_SCHEMA), faulty


def write_shard(table: pa.Table, path: Path) -> Shard:
    """Write a finished shard and return its entry for the manifest."""
    # Token ids and float32 log-probs barely compress beyond this, and the file is read often.
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
    return describe(path, rows=table.num_rows, tokens=sum(token_counts([table]).values()))


def describe(path: Path, *, rows: int, tokens: int) -> Shard:
    """The manifest's entry for the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(file=path.name, rows=rows, tokens=tokens, bytes=path.stat().st_size, sha256=digest)


def token_counts(tables: Iterable[pa.Table]) -> dict[str, int]:
    """How many tokens stand in each id column, over all `tables`."""
    counts = dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), 0)
    for table in tables:
        for name in counts:
            counts[name] += sum(len(chunk.flatten()) for chunk in table.column(name).chunks)
    return counts


def _fault(row: Row) -> RowFault | None:
    """Why the scores of `row` cannot be right, if they cannot."""
    for side in _SIDES:
        ids, logps = row[f"{side}_ids"], row[f"ref_{side}_logps"]
        if ids is None:
            continue
        if problem := _problem(ids, logps):
            return RowFault(Reason.BAD_SCORE, f"{side}_ids", f"{side}: {problem}")
    return None


def _problem(ids: list[int], logps: Logps) -> str | None:
    if len(logps) != len(ids):
        return f"{len(logps)} log-probs for {len(ids)} tokens"
    if not np.isfinite(logps).all():
        return "a log-prob is not finite"
    if logps.max() > _ROUNDING:
        return f"a log-prob is {logps.max():.4f}, above 0"
    return None
