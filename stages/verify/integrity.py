"""Is a cache whole? Checksums, schema, counts, ids, lengths and values, without a model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_schemas import quarantine
from data_schemas.cache_shard import RESPONSES, SHARD_SCHEMA, read_shard
from data_schemas.errors import InputError
from data_schemas.manifest import Manifest, Shard, require_intact
from data_schemas.storage import at_once, opened
from stages.precompute.row_ids import unique_keys
from stages.precompute.shards import count_tokens

_ROUNDING = 1e-4  # a log-prob may exceed 0 by this much through the rounding of a log-sum-exp
_SUM_TOLERANCE = 1e-6  # of a sum in float64, relative


def integrity(cache: Path, manifest: Manifest, advance: Callable[[float], None]) -> list[str]:
    """What is wrong with a sealed cache, each with the file's name; empty if it is whole."""
    found = damage(cache, manifest.shards, advance)
    record = manifest.quarantine
    found += list(_file_damage(cache / record.file, record))
    if not found:
        found += _quarantine_damage(cache / record.file, record)
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.counts.rows:
        found.append(
            f"manifest.json: counts {manifest.counts.rows} rows, but its shards have {rows}"
        )
    return found


def damage(
    cache: Path, shards: Sequence[Shard], advance: Callable[[float], None] = lambda _: None
) -> list[str]:
    """What is wrong with shards: with each by itself, and ids that stand in more than one place."""
    found: list[str] = []
    keys = []
    for problems, its_keys in at_once(
        lambda shard: _shard_damage(cache / shard.file, shard), shards
    ):
        found += problems
        keys.append(its_keys)
        advance(1)
    joined = np.sort(np.concatenate([np.zeros(0, np.uint64), *keys]))
    if twice := int((joined[1:] == joined[:-1]).sum()):
        found.append(f"{cache}: {twice} row ids stand there more than once")
    return found


def _shard_damage(path: Path, shard: Shard) -> tuple[list[str], NDArray[np.uint64]]:
    """What is wrong with a shard by itself, and a key of each of its ids."""
    none = np.zeros(0, np.uint64)
    if problems := list(_file_damage(path, shard)):
        return problems, none
    try:
        table = read_shard(path)
        problems = [f"{path}: {text}" for text in _table_damage(table, shard)]
        return problems, unique_keys(table.column("row_id").combine_chunks())
    except (InputError, ValueError) as error:  # Arrow's errors are ValueErrors, too
        return [f"{path}: {error}"], none


def _file_damage(path: Path, record: Shard) -> Iterator[str]:
    try:
        require_intact(path, record)
    except InputError as error:
        yield str(error)


def _table_damage(table: pa.Table, shard: Shard) -> Iterator[str]:
    if not table.schema.equals(SHARD_SCHEMA):
        yield "its columns are not those of a shard"
        return
    if table.num_rows != shard.rows:
        yield f"it holds {table.num_rows} rows, not {shard.rows}"
    tokens = sum(count_tokens(table, f"{name}_ids") for name in ("prompt", *RESPONSES))
    if tokens != shard.tokens:
        yield f"it holds {tokens} tokens, not {shard.tokens}"
    weights = pc.fill_null(table.column("weight"), 1.0).to_numpy()
    if not np.isfinite(weights).all() or (weights < 0).any():
        yield "a weight is not finite or is under 0"
    for side in RESPONSES:
        yield from _side_damage(table, side)


def _side_damage(table: pa.Table, side: str) -> Iterator[str]:
    ids, logps, sums = (
        table.column(name).combine_chunks()
        for name in (f"{side}_ids", f"ref_{side}_logps", f"ref_{side}_logp_sum")
    )
    lengths = pc.fill_null(pc.list_value_length(ids), -1).to_numpy()
    scored = pc.fill_null(pc.list_value_length(logps), -1).to_numpy()
    if (lengths != scored).any():
        yield f"{side}: row {(lengths != scored).argmax()} has not one log-prob for each token"
        return
    values = logps.flatten().to_numpy()
    if not np.isfinite(values).all() or (values > _ROUNDING).any():
        yield f"{side}: a log-prob is not finite or is above 0"
        return
    there = lengths > 0
    ends = np.cumsum(lengths[there])
    if not len(ends):
        return
    totals = np.add.reduceat(values, np.concatenate([[0], ends[:-1]]), dtype=np.float64)
    stored = pc.fill_null(sums, np.nan).to_numpy()[there]
    wrong = ~(np.abs(stored - totals) <= _SUM_TOLERANCE * np.maximum(1, np.abs(totals)))
    if wrong.any():
        yield f"{side}: a sum is not that of its log-probs"


def _quarantine_damage(path: Path, record: Shard) -> list[str]:
    try:
        with opened(path) as source:
            table = pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        return [f"{path}: not a readable Parquet file ({error})"]
    if not table.schema.equals(quarantine.SCHEMA):
        return [f"{path}: its columns are not those of a quarantine"]
    if table.num_rows != record.rows:
        return [f"{path}: it holds {table.num_rows} rows, not {record.rows}"]
    return []
