"""Reading the shards of a sealed cache. Every stage reads them here, completely and checked.

A matching checksum shows that a file is the one in the manifest, not that its content is valid.
Each shard is therefore read into memory once and hashed, and all its rows are checked before any
column is used. After the last shard, duplicate row ids are an error too.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas.cache_shard import read_shard, total_tokens
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import at_once, read_bytes, require_inside
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.row_id import unique_keys
from reflogp.data_schemas.sealed_file import Shard, require_sha256, unreadable
from reflogp.stages.cache.shard_content import Limits, faults, limits_of

Result = TypeVar("Result")
_REMEDY = "Copy the cache from its origin again, or run `reflogp precompute` again."


def each_shard(
    cache: Path,
    manifest: Manifest,
    look: Callable[[Shard, pa.Table], Result],
    columns: list[str] | None = None,
    limits: Limits | None = None,
) -> Iterator[Result]:
    """Apply `look` to every shard of a sealed cache, several at a time; yield results in order.

    Args:
        cache: the cache's folder.
        manifest: the cache's manifest.
        look: called with each shard's entry and table, in threads.
        columns: columns that `look` needs; all columns are checked in any case.
        limits: limits that the rows must satisfy; by default those of the manifest.

    Raises:
        InputError: a file is missing or has changed since the seal, a row is invalid, or two rows
            have the same id. Duplicate ids are detected only after the last shard.
    """
    expected = limits or limits_of(manifest)

    def seen(shard: Shard) -> tuple[Result, NDArray[np.uint64]]:
        table = sealed_shard(cache, shard, expected)
        keys = unique_keys(table.column("row_id").combine_chunks())
        return look(shard, table if columns is None else table.select(columns)), keys

    every = []
    for result, keys in at_once(seen, manifest.shards):
        every.append(keys)
        yield result
    if problem := repeated_ids(cache, manifest.shards, every):
        raise InputError(f"{problem}. {_REMEDY}")


def sealed_shard(
    cache: Path, shard: Shard, limits: Limits, columns: list[str] | None = None
) -> pa.Table:
    """Read one shard of a sealed cache, or some of its columns. All columns are checked.

    Raises:
        InputError: the file is missing or has changed since the seal, or a row is invalid.
    """
    table, _ = whole_shard(cache, shard)
    if problem := next(problems(table, shard, limits), None):
        raise InputError(f"{cache / shard.file}, {problem}. {_REMEDY}")
    return table if columns is None else table.select(columns)


def whole_shard(cache: Path, shard: Shard) -> tuple[pa.Table, Shard]:
    """Read a shard without checking its rows; also return the entry for its manifest.

    Args:
        cache: the folder.
        shard: the expected shard; an empty `sha256` is not known yet.

    Raises:
        InputError: the file is missing, damaged, or has changed since the seal.
    """
    path = cache / shard.file
    try:
        require_inside(path)
        content = read_bytes(path, shard.bytes if shard.sha256 else None)
    except OSError as error:
        raise unreadable(path, error) from error
    digest = hashlib.sha256(content).hexdigest()
    if shard.sha256:
        require_sha256(path, digest, shard)
    table = read_shard(path, content=content)
    return table, shard.model_copy(update={"bytes": len(content), "sha256": digest})


def problems(table: pa.Table, shard: Shard, limits: Limits) -> Iterator[str]:
    """Yield the problems in a shard's rows, each with the row and the field."""
    if table.num_rows != shard.rows:
        yield f"all rows: it holds {table.num_rows} rows, not {shard.rows}"
    tokens = total_tokens(table)
    if tokens != shard.tokens:
        yield f"all rows: it holds {tokens} tokens, not {shard.tokens}"
    yield from map(str, faults(table, limits))


def repeated_ids(
    cache: Path, shards: Sequence[Shard], keys: list[NDArray[np.uint64]]
) -> str | None:
    """Describe the first row with the id of an earlier row; None if ids are unique.

    Args:
        cache: the folder.
        shards: the shards that were read.
        keys: `row_id.unique_keys` of each shard's ids, uint64 [rows] each.
    """
    ordered = np.concatenate([np.zeros(0, np.uint64), *keys])
    ordered.sort()  # in place: a copy of the keys of 100 million rows would take 800 MB
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return None
    places = [
        (shard.file, row)
        for shard, some in zip(shards, keys, strict=True)
        for row in np.flatnonzero(some == twice[0]).tolist()
    ]
    (first, its_row), (second, row) = places[:2]
    return (
        f"{cache / second}, row {row}: row_id is the same as in {first}, row {its_row}; "
        f"{len(twice)} rows have the id of another row"
    )
