"""Columns of a sealed cache -> rows by position, in memory that does not grow with their number.

The columns that training reads are copied once into an Arrow file, which is memory-mapped. Any row
is a few pages away, so the shuffle covers all rows, and the system decides which pages stay in
memory. A mask takes one byte per token, because NumPy cannot view bits.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.cache.shard_content import Limits


class MappedCache:
    """Some columns of all rows of a cache, by position."""

    def __init__(
        self,
        cache: Path,
        manifest: Manifest,
        columns: list[str],
        derived: Callable[[pa.Table], pa.Table] = lambda table: table,
        limits: Limits | None = None,
    ) -> None:
        """Check the shards of a sealed cache and map the given columns.

        Args:
            cache: folder of the cache.
            manifest: its manifest.
            columns: to read from each shard.
            derived: turns these columns of a shard into the ones to keep.
            limits: that the rows must satisfy; default: those in the manifest.

        Raises:
            InputError: a shard is missing or damaged, or a row is invalid.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="reflogp-")
        file = Path(self._folder.name) / "rows.arrow"
        tables = each_shard(
            cache,
            manifest,
            lambda _, table: _with_bytes(derived(table.combine_chunks())),
            columns,
            limits,
        )
        first = next(tables)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in batches])
        self._parts = [
            {name: _Column(batch.column(name)) for name in batch.schema.names} for batch in batches
        ]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int) -> dict[str, Any]:
        """One row's values by column: a number, a view of the mapped file for a list, or None."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        return {name: column.at(row) for name, column in self._parts[number].items()}

    def longest(self, *names: str) -> int:
        """Position of the row with the most elements in these list columns together."""
        most, found, start = -1, 0, 0
        for part in self._parts:
            total = sum(part[name].lengths() for name in names)
            if len(total) and total.max() > most:
                most, found = int(total.max()), start + int(total.argmax())
            start += len(total)
        return found


def _with_bytes(table: pa.Table) -> pa.Table:
    """Convert masks to lists of bytes."""
    bytes_ = pa.list_(pa.uint8())
    fields = [
        field.with_type(bytes_) if field.name.endswith("_mask") else field for field in table.schema
    ]
    return table.cast(pa.schema(fields))


class _Column:
    """A column as NumPy arrays: single rows are read twenty times faster than as Arrow scalars."""

    def __init__(self, array: pa.Array) -> None:
        self._rows = len(array)
        # for a column of weights without any value, NumPy would take nine bytes per row
        self._empty = array.null_count == len(array)
        if self._empty:
            return
        self._valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
        self._ends = array.offsets.to_numpy() if pa.types.is_list(array.type) else None
        if pa.types.is_fixed_size_list(array.type):
            self._values = array.values.to_numpy().reshape(-1, array.type.list_size)
        elif self._ends is not None:
            values = array.values.to_numpy()
            self._values = values.view(np.bool_) if values.dtype == np.uint8 else values
        else:
            self._values = array.to_numpy(zero_copy_only=False)

    def at(self, row: int) -> Any:
        """The value of a row."""
        if self._empty or (self._valid is not None and not self._valid[row]):
            return None
        if self._ends is not None:
            return self._values[self._ends[row] : self._ends[row + 1]]
        return self._values[row]

    def lengths(self) -> Any:
        """Lengths of the lists, int64 [rows]; 0 for a missing list."""
        if self._empty or self._ends is None:
            return np.zeros(self._rows, np.int64)
        found = np.diff(self._ends).astype(np.int64)
        return found if self._valid is None else found * self._valid
