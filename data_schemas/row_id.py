"""A row's id: a hash of its token ids, so that the same row has the same id in every cache."""

import hashlib
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CONTENT_DIGITS = 32
"""How much of an id its content decides; what follows only tells copies apart."""

PATTERN = rf"^[0-9a-f]{{{CONTENT_DIGITS}}}(-[1-9][0-9]{{0,17}})?$"
"""What an id looks like. The second row of the same content ends in -1, the third in -2."""


def content_hash(*parts: Any) -> bytes:
    """BLAKE2b-128 of the token ids of a row, 16 bytes.

    Args:
        parts: int32 [tokens] each: prompt, chosen, rejected, and the KL completion where the row
            has one; None for a response that is absent.
    """
    content = hashlib.blake2b(digest_size=CONTENT_DIGITS // 2)
    for part in parts:
        # the length first, so that [1], [2, 3] and [1, 2], [3] differ; -1 marks what is absent
        content.update(struct.pack("i", -1 if part is None else len(part)))
        content.update(part or b"")
    return content.digest()


def content_hashes(parts: list[pa.Array]) -> NDArray[np.bytes_]:
    """`content_hash` of every row, S16 [rows].

    Args:
        parts: list<int32> [rows] each: prompt, chosen, rejected, KL completion. A row whose KL
            completion is null is hashed without one.
    """
    pieces = [piece for place, part in enumerate(parts) for piece in _pieces(part, place > 2)]
    size = CONTENT_DIGITS // 2
    digests = [
        hashlib.blake2b(b"".join(row), digest_size=size).digest()
        for row in zip(*pieces, strict=True)
    ]
    return np.frombuffer(b"".join(digests), f"S{size}")


def _pieces(part: pa.Array, optional: bool) -> tuple[list[bytes], list[memoryview]]:
    """Of each row the length of a part, as it is hashed, and its ids."""
    lengths = pc.fill_null(pc.list_value_length(part), -1).to_numpy()
    ids = memoryview(part.flatten().to_numpy()).cast("B")
    bounds = [0, *(4 * np.cumsum(np.maximum(lengths, 0), dtype=np.int64)).tolist()]
    heads = {
        length: b"" if optional and length < 0 else struct.pack("i", length)
        for length in np.unique(lengths).tolist()
    }
    return (
        [heads[length] for length in lengths.tolist()],
        [ids[start:end] for start, end in pairwise(bounds)],
    )


def stored_hashes(row_ids: pa.Array) -> NDArray[np.bytes_]:
    """The content hash in each id, S16 [rows].

    Raises:
        ValueError: one is no row id.
    """
    return _beginnings(row_ids, CONTENT_DIGITS, f"S{CONTENT_DIGITS // 2}")


def content_keys(row_ids: pa.Array) -> NDArray[np.uint64]:
    """The first 64 bits of the content hash in each id, uint64 [rows].

    Raises:
        ValueError: one is no row id.
    """
    return _beginnings(row_ids, 16, ">u8").astype(np.uint64)


def unique_keys(row_ids: pa.Array) -> NDArray[np.uint64]:
    """A key of each id that is another for another copy of the same content, uint64 [rows].

    Raises:
        ValueError: one is no row id.
    """
    copies = pc.utf8_slice_codeunits(row_ids, CONTENT_DIGITS + 1)
    texts = pc.if_else(pc.equal(copies, ""), "0", copies)
    numbers: NDArray[np.uint64] = texts.cast(pa.uint64()).to_numpy()
    # an odd factor spreads the copies' numbers over all bits; the product wraps around
    return content_keys(row_ids) ^ (numbers * np.uint64(0x9E3779B97F4A7C15))


def _beginnings(row_ids: pa.Array, digits: int, dtype: str) -> NDArray[Any]:
    """The first hexadecimal digits of each id, as one value of `dtype` each."""
    text = "".join(pc.utf8_slice_codeunits(row_ids, 0, digits).to_pylist())
    found = np.frombuffer(bytes.fromhex(text), dtype)
    if len(found) != len(row_ids):
        raise ValueError("a row id is too short")
    return found
