"""What of a file is in memory at a time: bounded, whoever made the file.

A compressed file of a megabyte can hold a line of a gigabyte; so can a row group of Parquet.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from reflogp.data_schemas.errors import InputError

_LONGEST_LINE = 64 << 20  # bytes; a thousand times the longest conversations
_LARGE = 256 << 20  # bytes; what is smaller may be compressed as well as it likes
_FOLD = 100  # text is compressed three- to tenfold, tables of numbers perhaps fiftyfold


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which may be compressed with gzip.

    Raises:
        InputError: a line is longer than any row can be.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    most = _most(path)
    with _open(path) as file:
        number, read = 0, 0
        while line := file.readline(_LONGEST_LINE + 1):
            number, read = number + 1, read + len(line)
            if len(line) > _LONGEST_LINE:
                raise InputError(
                    f"{path}: line {number} is longer than {_LONGEST_LINE >> 20} MiB, which no "
                    "row is. Save the rows as JSONL, each in a line of its own."
                )
            _require(path, read, most)
            yield line


def content(path: Path) -> bytes:
    """All of a file, which may be compressed with gzip.

    Raises:
        InputError: it expands far beyond what text does.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    parts, read, most = [], 0, _most(path)
    with _open(path) as file:
        while part := file.read(_LONGEST_LINE):
            read += len(part)
            _require(path, read, most)
            parts.append(part)
    return b"".join(parts)


def require_row_groups(path: Path) -> None:
    """Refuse a Parquet file whose row groups expand far beyond what text does.

    Raises:
        InputError: so it is.
        pyarrow.ArrowException, OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        size = sum(
            file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)
        )
    _require(path, size, _most(path))


def _most(path: Path) -> int:
    """How many bytes may come out of a file."""
    return max(_LARGE, _FOLD * path.stat().st_size)


def _require(path: Path, size: int, most: int) -> None:
    if size > most:
        raise InputError(
            f"{path}: it expands to more than {_FOLD} times its size, which no text does. Save it "
            "without compression if that is right."
        )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]
