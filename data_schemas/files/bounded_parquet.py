"""Reading untrusted Parquet files in memory bounded by their size.

Compression and dictionaries let a small file expand to all the memory of a machine. The footer
tells how much memory a column takes before any page is read, and a dictionary's expansion is
computed before it is decoded. Files that expand too far are rejected.
"""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROOM = 64 << 20  # bytes of memory that any file can take
_EXPANSION = 100  # larger files can take this many times their size; real ones take 1 to 20
_FOOTER_BYTES = 64 << 20
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}


class UnsoundError(ValueError):
    """A readable Parquet file whose content is unacceptable, and why."""


def read_table(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, columns: list[str] | None = None
) -> pa.Table:
    """Read a file, or some of its columns.

    Args:
        source: the file.
        schema: the schema that the file must have.
        what: what the file should be, for messages.
        columns: the columns to read; all if None.

    Raises:
        UnsoundError: the schema differs, the footer contradicts itself, or the file expands too
            far.
        pa.ArrowException, OSError, ValueError: the file is damaged or not Parquet.
    """
    file, most = _opened(source, schema, what)
    with file:
        return _plain(file.read(columns=columns), schema, most)


def read_batches(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, rows: int
) -> Iterator[pa.RecordBatch]:
    """Read a file that can be larger than memory, `rows` rows at a time.

    The limit applies to each row group, not to the whole file. Raises as `read_table`.
    """
    file, most = _opened(source, schema, what, whole=False)
    with file:
        for batch in file.iter_batches(rows):
            yield from _plain(pa.Table.from_batches([batch]), schema, most).to_batches()


def _opened(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, *, whole: bool = True
) -> tuple[pq.ParquetFile, int]:
    """Open a file without decoding its dictionaries; also return its limit in bytes of memory."""
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - 8))
    if int.from_bytes(source.read(4), "little") > _FOOTER_BYTES:
        raise UnsoundError("its footer is too large")
    # each page has a checksum, so a flipped bit raises an error instead of changing a number
    options: dict[str, Any] = {"page_checksum_verification": True}
    file = pq.ParquetFile(source, **options)
    if not file.schema_arrow.equals(schema):
        raise UnsoundError(f"its columns are not those of a {what}")
    most = max(_ROOM, _EXPANSION * size)
    dictionaries = _require_modest(file.metadata, most, whole=whole)
    if dictionaries:
        file = pq.ParquetFile(source, read_dictionary=dictionaries, **options)
    return file, most


def _require_modest(metadata: pq.FileMetaData, most: int, *, whole: bool) -> list[str]:
    """Reject columns that take more than `most` bytes, over the whole file or in one row group.

    Returns:
        The text columns that have dictionaries.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise UnsoundError(f"its row groups do not add up to its {metadata.num_rows} rows")
    sizes: dict[str, int] = {}
    dictionaries = set()
    for chunk in (group.column(n) for group in groups for n in range(group.num_columns)):
        path, kind = chunk.path_in_schema, chunk.physical_type
        size = max(chunk.total_uncompressed_size, chunk.num_values * _WIDTHS[kind])
        sizes[path] = size + (sizes.get(path, 0) if whole else 0)
        if sizes[path] > most:
            raise UnsoundError(f"{path} would take {size:,} bytes of memory, far over the file's")
        if kind == "BYTE_ARRAY" and (
            chunk.has_dictionary_page or any("DICTIONARY" in name for name in chunk.encodings)
        ):
            dictionaries.add(path)
    return sorted(dictionaries)


def _plain(table: pa.Table, schema: pa.Schema, most: int) -> pa.Table:
    """Decode the dictionaries of `table`, and check it against Arrow's format."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        size = sum(_spread(chunk) for chunk in column.chunks)
        if size > most:
            raise UnsoundError(f"{name} would take {size:,} bytes of memory, far over the file's")
    plain = table.cast(pa.schema([schema.field(name) for name in table.column_names]))
    plain.validate(full=True)  # includes that texts are UTF-8
    return plain


def _spread(array: pa.Array) -> int:
    """Return the bytes that an array's dictionaries take once decoded."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_list(array.type):
        return _spread(array.values)
    if pa.types.is_struct(array.type):
        return sum(_spread(array.field(n)) for n in range(array.type.num_fields))
    return 0
