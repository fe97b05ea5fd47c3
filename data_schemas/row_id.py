"""Row ids: a hash of the row's token ids and masks, so a row has the same id in every cache."""

import hashlib
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CONTENT_DIGITS = 32
"""Length of the content hash in an id, in hex digits. What follows only tells copies apart."""

PATTERN = rf"^[0-9a-f]{{{CONTENT_DIGITS}}}(-[1-9][0-9]{{0,17}})?$"
"""Regular expression of an id. The second row with the same content ends in -1, the third in -2."""


_MASK_TAGS = (-2, -3, -4)  # mark a mask of the chosen, rejected or KL response; never a length


def content_hash(*parts: Any, masks: Sequence[Any] = ()) -> bytes:
    """Return the BLAKE2b-128 of a row's token ids and masks, 16 bytes.

    Args:
        parts: int32 [tokens] each: prompt, chosen, rejected, and the KL completion if the row has
            one. None marks a missing response.
        masks: one byte per token each, 0 or 1: of chosen, rejected and KL completion. A row
            without masks has the same hash as before there were any.
    """
    content = hashlib.blake2b(digest_size=CONTENT_DIGITS // 2)
    for part in parts:
        # lengths are hashed so that [1], [2, 3] and [1, 2], [3] differ; -1 marks a missing part
        content.update(struct.pack("i", -1 if part is None else len(part)))
        content.update(part or b"")
    for tag, mask in zip(_MASK_TAGS, masks, strict=False):
        if mask is not None:
            content.update(struct.pack("ii", tag, len(mask)))
            content.update(mask)
    return content.digest()


def content_hashes(parts: list[pa.Array], masks: Sequence[pa.Array] = ()) -> NDArray[np.bytes_]:
    """Return `content_hash` of every row, S16 [rows].

    Args:
        parts: list<int32> [rows] each: prompt, chosen, rejected, KL completion. If a row's KL
            completion is null, its hash leaves it out.
        masks: list<bool> [rows] each: of chosen, rejected and KL completion.
    """
    pieces = [piece for place, part in enumerate(parts) for piece in _pieces(part, place > 2)]
    for tag, mask in zip(_MASK_TAGS, masks, strict=False):
        if mask.null_count < len(mask):
            pieces += _pieces(mask, True, tag)
    size = CONTENT_DIGITS // 2
    digests = [
        hashlib.blake2b(b"".join(row), digest_size=size).digest()
        for row in zip(*pieces, strict=True)
    ]
    return np.frombuffer(b"".join(digests), f"S{size}")


def _pieces(part: pa.Array, optional: bool, *tag: int) -> tuple[list[bytes], list[memoryview]]:
    """Return the bytes that each row adds to its hash for a part: the length, and the values."""
    lengths = pc.fill_null(pc.list_value_length(part), -1).to_numpy()
    values = part.flatten().to_numpy(zero_copy_only=False)
    ids = memoryview(values).cast("B")
    bounds = [0, *(values.itemsize * np.cumsum(np.maximum(lengths, 0), dtype=np.int64)).tolist()]
    heads = {
        length: b"" if optional and length < 0 else struct.pack(f"{len(tag) + 1}i", *tag, length)
        for length in np.unique(lengths).tolist()
    }
    return (
        [heads[length] for length in lengths.tolist()],
        [ids[start:end] for start, end in pairwise(bounds)],
    )


def stored_hashes(row_ids: pa.Array) -> NDArray[np.bytes_]:
    """Return the content hash in each id, S16 [rows].

    Raises:
        ValueError: one of them is not a row id.
    """
    return _beginnings(row_ids, CONTENT_DIGITS, f"S{CONTENT_DIGITS // 2}")


def content_keys(row_ids: pa.Array) -> NDArray[np.uint64]:
    """Return the first 64 bits of the content hash in each id, uint64 [rows].

    Raises:
        ValueError: one of them is not a row id.
    """
    return _beginnings(row_ids, 16, ">u8").astype(np.uint64)


def unique_keys(row_ids: pa.Array) -> NDArray[np.uint64]:
    """Return a key for each id that also tells copies of the same content apart, uint64 [rows].

    Raises:
        ValueError: one of them is not a row id.
    """
    copies = pc.utf8_slice_codeunits(row_ids, CONTENT_DIGITS + 1)
    texts = pc.if_else(pc.equal(copies, ""), "0", copies)
    numbers: NDArray[np.uint64] = texts.cast(pa.uint64()).to_numpy()
    # an odd factor spreads the copy numbers over all 64 bits; the product wraps around
    return content_keys(row_ids) ^ (numbers * np.uint64(0x9E3779B97F4A7C15))


def _beginnings(row_ids: pa.Array, digits: int, dtype: str) -> NDArray[Any]:
    """Return the first hex digits of each id as one value of `dtype`."""
    text = "".join(pc.utf8_slice_codeunits(row_ids, 0, digits).to_pylist())
    found = np.frombuffer(bytes.fromhex(text), dtype)
    if len(found) != len(row_ids):
        raise ValueError("a row id is too short")
    return found
