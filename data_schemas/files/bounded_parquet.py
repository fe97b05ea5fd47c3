"""Reading a Parquet file that anybody may have made, in memory that its size allows.

Compression makes a thousand pages of zeros from one, and a dictionary a thousand long texts from
one, so a small file can ask for all the memory of a machine. What a file would take is known from
its footer, before a page is read, and of a dictionary before it is spread out.
"""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROOM = 64 << 20  # bytes in memory that any file may take
_EXPANSION = 100  # times its size that a larger one may; real ones take 1 to 20
_FOOTER_BYTES = 64 << 20
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}


class UnsoundError(ValueError):
    """A Parquet file that can be read, but should not be; says why."""


def read_table(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, columns: list[str] | None = None
) -> pa.Table:
    """Read a file, or some of its columns.

    Args:
        source: the file.
        schema: that its columns must have.
        what: it should be, for messages.
        columns: to read; None: all.

    Raises:
        UnsoundError: its columns are others, its footer contradicts itself, or it expands too far.
        pa.ArrowException, OSError, ValueError: it is no Parquet file, or damaged.
    """
    file, most = _opened(source, schema, what)
    with file:
        return _plain(file.read(columns=columns), schema, most)


def read_batches(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, rows: int
) -> Iterator[pa.RecordBatch]:
    """Read a file that may be larger than memory, so many rows at a time. Raises as `read_table`.

    What is bounded is not the whole file, but each row group.
    """
    file, most = _opened(source, schema, what, whole=False)
    with file:
        for batch in file.iter_batches(rows):
            yield from _plain(pa.Table.from_batches([batch]), schema, most).to_batches()


def _opened(
    source: io.BufferedIOBase, schema: pa.Schema, what: str, *, whole: bool = True
) -> tuple[pq.ParquetFile, int]:
    """The file, with its dictionaries kept as such; and how many bytes may be in memory."""
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - 8))
    if int.from_bytes(source.read(4), "little") > _FOOTER_BYTES:
        raise UnsoundError("its footer is too large")
    # each page has a checksum, so a flipped bit is an error and not another number
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
    """Refuse columns that take more than `most` bytes, of all row groups or of one.

    Returns:
        The text columns that have dictionaries.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise UnsoundError(f"it says {metadata.num_rows} rows, and its row groups have others")
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
    """`table` with its dictionaries spread out, and checked as Arrow's format asks."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        size = sum(_spread(chunk) for chunk in column.chunks)
        if size > most:
            raise UnsoundError(f"{name} would take {size:,} bytes of memory, far over the file's")
    plain = table.cast(pa.schema([schema.field(name) for name in table.column_names]))
    plain.validate(full=True)  # texts are UTF-8, say
    return plain


def _spread(array: pa.Array) -> int:
    """Bytes that the dictionaries in an array take once they are spread out."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_list(array.type):
        return _spread(array.values)
    if pa.types.is_struct(array.type):
        return sum(_spread(array.field(n)) for n in range(array.type.num_fields))
    return 0
