"""A full check of a cache's files: every problem with its file's name. It needs no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas import quarantine
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import at_once
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.row_id import unique_keys
from reflogp.data_schemas.sealed_file import Shard
from reflogp.stages.cache.sealed_shards import problems, repeated_ids, whole_shard
from reflogp.stages.cache.shard_content import ANY, Limits, limits_of


def integrity(cache: Path, manifest: Manifest, advance: Callable[[float], None]) -> list[str]:
    """Return every problem of a sealed cache, each with the file's name; empty if it has none."""
    _, found = examine(cache, manifest.shards, advance, limits_of(manifest))
    record = manifest.quarantine
    try:
        for _ in quarantine.batches(cache / record.file, record):
            pass
    except InputError as error:
        found.append(str(error))
    return found


def examine(
    cache: Path,
    shards: Sequence[Shard],
    advance: Callable[[float], None] = lambda _: None,
    limits: Limits = ANY,
) -> tuple[list[Shard], list[str]]:
    """Read every shard once and check its rows, and that row ids are unique over all shards.

    Args:
        cache: the folder.
        shards: the expected shards; an empty `sha256` is not known yet.
        advance: called with 1 after each shard, for progress.
        limits: limits that the rows must satisfy.

    Returns:
        The shards with their actual `bytes` and `sha256`, and the problems.
    """
    read: list[Shard] = []
    found: list[str] = []
    keys: list[NDArray[np.uint64]] = []
    for shard, wrong, its_keys in at_once(lambda shard: _examined(cache, shard, limits), shards):
        read.append(shard)
        found += wrong
        keys.append(its_keys)
        advance(1)
    if repeated := repeated_ids(cache, shards, keys):
        found.append(repeated)
    return read, found


def _examined(
    cache: Path, shard: Shard, limits: Limits
) -> tuple[Shard, list[str], NDArray[np.uint64]]:
    """Return a shard's actual entry, its problems, and a key of each of its ids."""
    none = np.zeros(0, np.uint64)
    try:
        table, read = whole_shard(cache, shard)
    except InputError as error:
        return shard, [str(error)], none
    wrong = [f"{cache / shard.file}, {text}" for text in problems(table, shard, limits)]
    try:
        return read, wrong, unique_keys(table.column("row_id").combine_chunks())
    except (ValueError, pa.ArrowException):  # malformed ids, which `wrong` already reports
        return read, wrong, none
