"""How alike two responses are: the share of their tokens that they have in common, in order.

Exactly, it is 2 LCS / (|y_w| + |y_l|), with LCS the longest common subsequence of the token ids: 1
for equal responses, 0 where no token is in both. That takes 0.1 ms a pair of 100 tokens, so a
sample is measured, or only those pairs that a bound from their token counts leaves in doubt.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.stages.cache.columns import View, views
from reflogp.stages.diagnose.keys import lengths

_BINS = 64
_ROWS = 4096


def similarity(one: View, other: View) -> float:
    """Of two arrays of token ids, between 0 and 1."""
    total = len(one) + len(other)
    ends = _shared_ends(one, other)
    middle = slice(ends[0], len(one) - ends[1]), slice(ends[0], len(other) - ends[1])
    common = sum(ends) + _common(one[middle[0]].tolist(), other[middle[1]].tolist())
    return 2 * common / total if total else 1.0


def similarities(
    table: pa.Table, rows: NDArray[np.int64], at_least: float = 0.0
) -> NDArray[np.float64]:
    """Similarity of the responses of some rows, float64 [len(rows)]; NaN if surely less.

    Args:
        table: with `chosen_ids` and `rejected_ids`, of paired rows.
        rows: positions in the table.
        at_least: what is under it need not be known.
    """
    found = np.full(len(rows), np.nan)
    for start in range(0, len(rows), _ROWS):
        some = table.take(pa.array(rows[start : start + _ROWS]))
        chosen, rejected = (some.column(f"{side}_ids") for side in ("chosen", "rejected"))
        bound = _at_most(chosen.combine_chunks(), rejected.combine_chunks())
        sides = views(chosen), views(rejected)
        for row in np.flatnonzero(bound >= at_least):
            good, bad = (side[row] for side in sides)
            if good is not None and bad is not None:
                found[start + row] = similarity(good, bad)
    return found


def _at_most(chosen: pa.Array, rejected: pa.Array) -> NDArray[np.float64]:
    """An upper bound of the similarity: no token is common more often than both have it."""
    counts = [_counts(side) for side in (chosen, rejected)]
    total = sum(count.sum(axis=1) for count in counts)
    found: NDArray[np.float64] = 2 * np.minimum(*counts).sum(axis=1) / np.maximum(total, 1)
    return found


def _counts(column: pa.Array) -> NDArray[np.int64]:
    """How many tokens of each list fall into each of a few bins, int64 [rows, bins]."""
    rows = np.repeat(np.arange(len(column)), lengths(column))
    bins = column.flatten().to_numpy() % _BINS
    return np.bincount(rows * _BINS + bins, minlength=len(column) * _BINS).reshape(-1, _BINS)


def _shared_ends(one: View, other: View) -> tuple[int, int]:
    """Tokens that both begin with, and tokens after those that both end with."""
    least = min(len(one), len(other))
    front = _first(one[:least] != other[:least])
    rest = least - front
    return front, _first(one[len(one) - rest :][::-1] != other[len(other) - rest :][::-1])


def _first(differ: NDArray[np.bool_]) -> int:
    return int(differ.argmax()) if differ.any() else len(differ)


def _common(one: list[int], other: list[int]) -> int:
    """Length of the longest common subsequence: a row of the table is one integer's bits.

    Crochemore et al. 2001, "A fast and practical bit-vector algorithm for the longest common
    subsequence problem"; a bit that is 0 is a step of the row.
    """
    places: dict[int, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    full = row = (1 << len(one)) - 1
    for token in other:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(one) - row.bit_count()
