"""Finished rows -> a shard on disk, written atomically, and its entry in the manifest."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reflogp.data_schemas.cache_shard import SHARD_SCHEMA
from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.files.storage import opened
from reflogp.data_schemas.sealed_file import Shard
from reflogp.data_schemas.shard_origin import origin_of, read_origin

_LISTS = [
    f"{f.name}.list.element"
    for f in SHARD_SCHEMA
    if pa.types.is_list(f.type)
    and pa.types.is_primitive(f.type.value_type)
    and not pa.types.is_boolean(f.type.value_type)
]


def write_shard(table: pa.Table, path: Path) -> None:
    """Write a finished shard, unless another job has just written the same one.

    The other job's file can be sealed already, and two engines need not agree to the bit.
    """
    # Measured on real pairs, against Parquet's defaults: byte stream split without a dictionary
    # writes 2.3 times as fast, reads twice as fast, and takes 0.7 times the space.
    with atomic_path(path, keep=lambda: _same_work(table, path)) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=False,
            column_encoding=dict.fromkeys(_LISTS, "BYTE_STREAM_SPLIT"),
            row_group_size=4096,
            write_page_checksum=True,
        )


def _same_work(table: pa.Table, path: Path) -> bool:
    """Whether the file at `path` is a complete shard of the plan that `table` was made from."""
    ours, there = origin_of(table), read_origin(path)
    if ours is None or there is None:
        return False
    origin, rows = there
    return (origin.inputs, origin.plan) == (ours.inputs, ours.plan) and (
        rows + len(origin.problems) == table.num_rows + len(ours.problems)
    )


def describe(path: Path, *, rows: int, tokens: int) -> Shard:
    """Return the manifest's entry for the file at `path`."""
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, os.SEEK_END)
    return Shard(file=path.name, rows=rows, tokens=tokens, bytes=size, sha256=digest)
