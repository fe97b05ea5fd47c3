"""Is a cache whole? Everything that is wrong with it, by file, without a model."""

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
    """What is wrong with a sealed cache, each with the file's name; empty if it is whole."""
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
    """Read every shard, once: what it is, and what is wrong with it or with the ids of all.

    Args:
        cache: the folder.
        shards: what they should be; a `sha256` that is empty is not known yet.
        advance: told of each shard.
        limits: what the rows must keep to.

    Returns:
        The shards with the `bytes` and `sha256` that they have; and the problems.
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
    """A shard as it is, what is wrong with it by itself, and a key of each of its ids."""
    none = np.zeros(0, np.uint64)
    try:
        table, read = whole_shard(cache, shard)
    except InputError as error:
        return shard, [str(error)], none
    wrong = [f"{cache / shard.file}, {text}" for text in problems(table, shard, limits)]
    try:
        return read, wrong, unique_keys(table.column("row_id").combine_chunks())
    except (ValueError, pa.ArrowException):  # which `wrong` says, too
        return read, wrong, none
