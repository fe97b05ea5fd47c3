"""Columns of a sealed cache -> rows by position, in memory that does not grow with their number.

The columns that training reads are copied once into an Arrow file that is mapped into memory: any
row is a few pages away, so the shuffle is over all of them, and what is resident is for the system
to decide.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_schemas.cache_shard import read_shard
from data_schemas.errors import InputError
from data_schemas.manifest import Manifest, require_intact


class MappedCache:
    """Some columns of all rows of a cache, by position."""

    def __init__(
        self,
        cache: Path,
        manifest: Manifest,
        columns: list[str],
        derived: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> None:
        """Check the shards of a sealed cache and map what is asked for.

        Args:
            cache: folder of the cache.
            manifest: its manifest.
            columns: what to read of each shard.
            derived: makes of these columns, shard by shard, the ones to keep.

        Raises:
            InputError: a shard is missing or damaged.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="reflogp-")
        file = Path(self._folder.name) / "rows.arrow"
        schema, rows = None, 0
        with pa.OSFile(str(file), "wb") as sink:
            writer = None
            for shard in manifest.shards:
                require_intact(cache / shard.file, shard)
                table = derived(read_shard(cache / shard.file, columns).combine_chunks())
                schema = schema or table.schema
                writer = writer or pa.ipc.new_file(sink, schema)
                writer.write_table(table)
                rows += table.num_rows
            if writer is not None:
                writer.close()
        if rows != manifest.counts.rows:
            raise InputError(
                f"{cache}: the shards hold {rows} rows, the manifest says {manifest.counts.rows}. "
                "Run `reflogp precompute` again."
            )
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int) -> dict[str, pa.Scalar]:
        """The columns of one row, by name; lists are views of the mapped file."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        return {name: batch.column(name)[row] for name in batch.schema.names}
