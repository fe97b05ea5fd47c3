"""A sealed cache as a Python object: index it, iterate over it, or convert it."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import pyarrow as pa

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA
from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.files.location import location
from reflogp.data_schemas.files.storage import reach
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.columns import views
from reflogp.stages.cache.sealed_shards import each_shard, sealed_shard
from reflogp.stages.cache.shard_content import limits_of

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

_SHARDS_KEPT = 4
_ROWS_AT_ONCE = 1000

Row = dict[str, Any]
"""The columns of SHARD_SCHEMA; token ids are NumPy int32 [tokens], log-probs float32 [tokens].

Masks are bool [tokens], or None if the policy writes every token of the response.
"""


class Cache:
    """A sealed cache. Opening it reads only the manifest; shards are read and checked when needed.

    Attributes:
        folder: the cache's folder.
        manifest: the cache's manifest: its content, its inputs, and how it was made.
    """

    folder: Path
    manifest: Manifest

    def __init__(self, folder: str | Path) -> None:
        """Open the cache in `folder`, a path or a URL.

        Raises:
            InputError: the cache is missing or unsealed, or its manifest is damaged.
            StorageError: the store of a URL does not answer.
        """
        self.folder = location(folder)
        reach(self.folder)
        self.manifest = manifests.read(self.folder)
        self._ends = [*accumulate(shard.rows for shard in self.manifest.shards)]
        self._kept: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return self.manifest.counts.rows

    def __repr__(self) -> str:
        counts, reference = self.manifest.counts, self.manifest.reference
        names = " + ".join(filter(None, (reference.name, reference.adapter)))
        return (
            f"Cache({str(self.folder)!r}: {counts.rows:,} {self.manifest.unit}, "
            f"{counts.tokens:,} tokens, reference {names!r})"
        )

    @overload
    def __getitem__(self, number: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: SupportsIndex | slice) -> Row | list[Row]:
        """Return one row, or a list of the rows of a slice, in the cache's order.

        Each row reads at most one whole shard, and the last few shards stay in memory. For random
        access, as in shuffled training, `to_dataset` is faster.

        Raises:
            InputError: the shard is missing or damaged.
        """
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        place = index(number)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"row {number} of a cache of {len(self)} rows")
        shard = bisect_right(self._ends, place)
        table = self._shard(shard)
        return _rows(table.slice(place - self._ends[shard] + table.num_rows, 1))[0]

    def __iter__(self) -> Iterator[Row]:
        """Yield every row in the cache's order, with a few shards in memory at a time.

        Raises:
            InputError: a shard is missing or damaged, or two rows have the same id.
        """
        for table in self._tables():
            yield from _rows(table)

    def to_dataset(self) -> "Dataset":
        """Return all rows as a memory-mapped `datasets.Dataset`.

        `with_format("numpy")` gives arrays. The first call writes the rows, checked and unpacked,
        to the cache folder of `datasets`, one shard after another; later calls open that file.

        Raises:
            InputError: a shard is missing or damaged, or two rows have the same id.
        """
        from datasets import Dataset, Features, config

        schema = Features.from_arrow_schema(SHARD_SCHEMA).arrow_schema
        path = Path(config.HF_DATASETS_CACHE) / "reflogp" / f"{self.manifest.seal}.arrow"
        if not path.exists():
            with (
                atomic_path(path) as temporary,
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_stream(file, schema) as writer,
            ):
                for table in self._tables():
                    writer.write_table(table.cast(schema), _ROWS_AT_ONCE)
        return Dataset.from_file(str(path))

    def to_pandas(self) -> "DataFrame":
        """Return all rows as a `pandas.DataFrame`, with token values as arrays in its cells.

        Raises:
            InputError: a shard is missing or damaged, or two rows have the same id.
        """
        return pa.concat_tables(self._tables()).to_pandas()

    def _tables(self) -> Iterator[pa.Table]:
        """Yield every shard, in order."""
        return each_shard(self.folder, self.manifest, lambda _, table: table)

    def _shard(self, number: int) -> pa.Table:
        """Return one shard. The most recently used shards stay in memory."""
        table = self._kept.pop(number, None)
        if table is None:
            shard = self.manifest.shards[number]
            table = sealed_shard(self.folder, shard, limits_of(self.manifest))
        self._kept[number] = table  # the newest is the last one
        if len(self._kept) > _SHARDS_KEPT:
            del self._kept[next(iter(self._kept))]
        return table


def _rows(table: pa.Table) -> list[Row]:
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; token arrays are copies, so they do not keep the shard."""
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        return [None if view is None else view.copy() for view in views(column)]
    return column.to_pylist()  # type: ignore[no-any-return]
