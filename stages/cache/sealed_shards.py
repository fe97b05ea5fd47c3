"""The one place where the shards of a sealed cache are read: whole, as sealed, and sound.

A checksum that fits says that a file is what its manifest lists, and nothing about what is in it.
So whatever a command uses of a shard, the whole shard is read once into memory, hashed, and every
row is checked before the command sees it; and at the end that no row id stands there twice.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas.cache_shard import RESPONSES, count_tokens, read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import at_once, read_bytes, require_inside
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.row_id import unique_keys
from reflogp.data_schemas.sealed_file import Shard, require_sha256, unreadable
from reflogp.stages.cache.shard_content import Limits, faults, limits_of

Result = TypeVar("Result")
_REMEDY = "Get the cache anew from where it is from, or run `reflogp precompute` again."


def each_shard(
    cache: Path,
    manifest: Manifest,
    look: Callable[[Shard, pa.Table], Result],
    columns: list[str] | None = None,
    limits: Limits | None = None,
) -> Iterator[Result]:
    """Look at every shard of a sealed cache, in order, several at a time.

    Args:
        cache: its folder.
        manifest: its manifest.
        look: what to take of a shard; called in threads.
        columns: that it needs; all are checked in any case.
        limits: what the rows must keep to; None: what the manifest says.

    Raises:
        InputError: a file is missing or not what was sealed, a row is not sound, or two rows have
            one id. That is known only once all shards were seen.
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
    """Read one shard of a sealed cache, or some of its columns; all of them are checked.

    Raises:
        InputError: it is missing or not what was sealed, or a row is not sound.
    """
    table, _ = whole_shard(cache, shard)
    if problem := next(problems(table, shard, limits), None):
        raise InputError(f"{cache / shard.file}, {problem}. {_REMEDY}")
    return table if columns is None else table.select(columns)


def whole_shard(cache: Path, shard: Shard) -> tuple[pa.Table, Shard]:
    """Read a shard; and what its manifest should list. Its rows are not checked yet.

    Args:
        cache: the folder.
        shard: what it should be; a `sha256` that is empty is not known yet.

    Raises:
        InputError: it is missing, damaged, or not what was sealed.
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
    """What is wrong with the rows of a shard, each with the row and the field."""
    if table.num_rows != shard.rows:
        yield f"all rows: it holds {table.num_rows} rows, not {shard.rows}"
    tokens = sum(count_tokens(table, f"{name}_ids") for name in ("prompt", *RESPONSES))
    if tokens != shard.tokens:
        yield f"all rows: it holds {tokens} tokens, not {shard.tokens}"
    yield from map(str, faults(table, limits))


def repeated_ids(
    cache: Path, shards: Sequence[Shard], keys: list[NDArray[np.uint64]]
) -> str | None:
    """Which row has the id of a row before it, if one has.

    Args:
        cache: the folder.
        shards: that were read.
        keys: of each shard's ids (row_id.unique_keys), uint64 [rows] each.
    """
    ordered = np.concatenate([np.zeros(0, np.uint64), *keys])
    ordered.sort()  # in place: with a key for each of 100 million rows a copy tells
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
        f"{cache / second}, row {row}: row_id stands there more than once, as in {first}, row "
        f"{its_row}; {len(twice)} rows have the id of another"
    )
