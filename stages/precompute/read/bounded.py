"""Reading untrusted data files in bounded memory.

A compressed file of one megabyte can contain a line of one gigabyte, and so can a Parquet row
group. Files that expand too far are rejected.
"""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from reflogp.data_schemas.errors import InputError

_LONGEST_LINE = 64 << 20  # bytes; a thousand times the longest conversations
_LARGE = 256 << 20  # bytes; below this, any compression ratio is allowed
_FOLD = 100  # compression ratios are 3 to 10 for text, perhaps 50 for tables of numbers

COMPRESSED = {".gz", ".zst"}
"""The suffixes of compressed files."""


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, which can be compressed.

    Raises:
        InputError: a line is longer than 64 MiB, or the file expands too far.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    most = _most(path)
    with opened(path) as file:
        number, read = 0, 0
        while line := file.readline(_LONGEST_LINE + 1):
            number, read = number + 1, read + len(line)
            if len(line) > _LONGEST_LINE:
                raise InputError(
                    f"{path}: line {number} is longer than {_LONGEST_LINE >> 20} MiB, too long for "
                    "a row. Save the rows as JSONL, one row per line."
                )
            _require(path, read, most)
            yield line


def content(path: Path) -> bytes:
    """Return the content of a file, which can be compressed.

    Raises:
        InputError: the file expands too far.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    parts, read, most = [], 0, _most(path)
    with opened(path) as file:
        while part := file.read(_LONGEST_LINE):
            read += len(part)
            _require(path, read, most)
            parts.append(part)
    return b"".join(parts)


def opened(path: Path) -> IO[bytes]:
    """Open a file for reading; its suffix tells whether it is compressed.

    Raises:
        OSError: the file cannot be read.
    """
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(pa.CompressedInputStream(path.open("rb"), "zstd"))
        case _:
            return path.open("rb")


def require_row_groups(path: Path) -> None:
    """Check that the row groups of a Parquet file do not expand too far.

    Raises:
        InputError: they do.
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        size = sum(
            file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)
        )
    _require(path, size, _most(path))


def _most(path: Path) -> int:
    """Return the largest size that a file can expand to, in bytes."""
    return max(_LARGE, _FOLD * path.stat().st_size)


def _require(path: Path, size: int, most: int) -> None:
    if size > most:
        raise InputError(
            f"{path}: it expands to more than {_FOLD} times its size, which text never does. If "
            "the content is correct, save it without compression."
        )
