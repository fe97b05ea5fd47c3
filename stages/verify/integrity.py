"""Is a cache whole? Checksums, schema, counts, ids, lengths and values, without a model."""

import hashlib
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
from data_schemas.manifest import (
    Manifest,
    Shard,
    require_intact,
    require_sha256,
    unreadable,
)
from data_schemas.storage import at_once, opened, read_bytes
from stages.precompute.row_ids import unique_keys
from stages.precompute.shards import count_tokens

_ROUNDING = 1e-4  # a log-prob may exceed 0 by this much through the rounding of a log-sum-exp
_BATCH_ROWS = 1_000  # of a quarantine, whose rows may be long
_SUM_TOLERANCE = 1e-6  # of a sum in float64, relative


def integrity(cache: Path, manifest: Manifest, advance: Callable[[float], None]) -> list[str]:
    """What is wrong with a sealed cache, each with the file's name; empty if it is whole."""
    _, found = examine(cache, manifest.shards, advance)
    record = manifest.quarantine
    found += _quarantine_damage(cache / record.file, record)
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.counts.rows:
        found.append(
            f"manifest.json: counts {manifest.counts.rows} rows, but its shards have {rows}"
        )
    return found


def examine(
    cache: Path, shards: Sequence[Shard], advance: Callable[[float], None] = lambda _: None
) -> tuple[list[Shard], list[str]]:
    """Read every shard, once: what it is, and what is wrong with it or with the ids of all.

    Args:
        cache: the folder.
        shards: what they should be; a `sha256` that is empty is not known yet.
        advance: told of each shard.

    Returns:
        The shards with the `bytes` and `sha256` that they have; and the problems.
    """
    read: list[Shard] = []
    found: list[str] = []
    keys = [np.zeros(0, np.uint64)]
    for shard, problems, its_keys in at_once(lambda shard: _examined(cache, shard), shards):
        read.append(shard)
        found += problems
        keys.append(its_keys)
        advance(1)
    joined = np.concatenate(keys)
    keys.clear()
    joined.sort()  # in place: with a key for each of 100 million rows a copy tells
    if twice := int(np.count_nonzero(joined[1:] == joined[:-1])):
        found.append(f"{cache}: {twice} row ids stand there more than once")
    return read, found


def _examined(cache: Path, shard: Shard) -> tuple[Shard, list[str], NDArray[np.uint64]]:
    """A shard as it is, what is wrong with it by itself, and a key of each of its ids."""
    path, none = cache / shard.file, np.zeros(0, np.uint64)
    try:
        content = read_bytes(path)
    except OSError as error:
        return shard, [str(unreadable(path, error))], none
    digest = hashlib.sha256(content).hexdigest()
    read = shard.model_copy(update={"bytes": len(content), "sha256": digest})
    try:
        if shard.sha256:
            require_sha256(path, digest, shard)
        table = read_shard(path, content=content)
        problems = [f"{path}: {text}" for text in _table_damage(table, shard)]
        return read, problems, unique_keys(table.column("row_id").combine_chunks())
    except InputError as error:
        return read, [str(error)], none
    except ValueError as error:  # Arrow's errors are ValueErrors, too
        return read, [f"{path}: {error}"], none


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
    """What is wrong with a quarantine, which may be far larger than memory."""
    try:
        require_intact(path, record)
        with opened(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            rows = sum(batch.num_rows for batch in file.iter_batches(_BATCH_ROWS))
    except InputError as error:
        return [str(error)]
    except (OSError, pa.ArrowException) as error:
        return [f"{path}: not a readable Parquet file ({error})"]
    if not schema.equals(quarantine.SCHEMA):
        return [f"{path}: its columns are not those of a quarantine"]
    if rows != record.rows:
        return [f"{path}: it holds {rows} rows, not {record.rows}"]
    return []
