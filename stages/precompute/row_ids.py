"""Token ids -> a stable, unique row id, in 8 bytes of memory a row.

Content decides the id: the same row has the same id in every run, whatever stands before it.
Rows with the same content are told apart by a suffix; to know them, a 64-bit key of each row is
kept, the recent ones in a set, the others in a sorted array. Two different rows that share a key
(one chance in 3,000 over 100 million rows) get a needless suffix: their ids differ anyway.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CONTENT_DIGITS = 32
"""How much of an id its content decides; what follows only tells copies apart."""

_RECENT = 65_536


class RowIds:
    """Gives ids, and remembers what it gave."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.zeros(0, np.uint64)
        self._copies: dict[int, int] = {}

    def assign(self, *parts: list[int] | None) -> str:
        """The id of a row with these token ids: BLAKE2b-128 in hex, then `-1` on the 2nd copy."""
        name = content_hash(*parts)
        copies = self._count(int.from_bytes(name[:8], "little"))
        return name.hex() + (f"-{copies}" if copies else "")

    def _count(self, key: int) -> int:
        """How often `key` was seen before."""
        if key in self._recent or self._is_sorted(key):
            self._copies[key] = self._copies.get(key, 0) + 1
            return self._copies[key]
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return 0

    def _is_sorted(self, key: int) -> bool:
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        return place < len(self._sorted) and int(self._sorted[place]) == key


def content_hash(*parts: Sequence[int] | NDArray[np.integer] | None) -> bytes:
    """BLAKE2b-128 of the token ids of a row: prompt, chosen, rejected, None for what is absent."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # the length first, so that [1], [2, 3] and [1, 2], [3] differ; -1 marks what is absent
        digest.update(np.int32(-1 if part is None else len(part)).tobytes())
        digest.update(np.asarray([] if part is None else part, np.int32).tobytes())
    return digest.digest()


def content_keys(row_ids: pa.Array) -> NDArray[np.uint64]:
    """The first 64 bits of the content hash in each id, uint64 [rows].

    Raises:
        ValueError: one is no row id.
    """
    digits = "".join(pc.utf8_slice_codeunits(row_ids, 0, 16).to_pylist())
    keys = np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
    if len(keys) != len(row_ids):
        raise ValueError("a row id is too short")
    return keys


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
