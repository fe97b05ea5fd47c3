"""Token ids and masks -> 64-bit keys, which find equal and swapped pairs among millions.

A key takes 8 bytes per row. One in 18 million caches of a million rows has two different rows with
the same key. The keys of a pair and of its swap differ only in the lowest bit.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_ORDER = np.uint64(1)
_CONTEXT = np.uint64(1 << 31)  # a bit that no token id has


def lengths(column: pa.Array) -> NDArray[np.int64]:
    """Tokens in each list, int64 [rows]; 0 where it is null."""
    found: NDArray[np.int64] = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return found.astype(np.int64)


def list_keys(column: pa.Array, masks: pa.Array | None = None) -> Keys:
    """A key for each list of token ids, uint64 [rows]; 0 if the list is null or empty.

    The key sums a hash of every token and its position, so it depends on the order.

    Args:
        column: list<int32> [rows].
        masks: list<bool> [rows] of the same lengths, or null. A token that the policy does not
            write has another hash.
    """
    counts = lengths(column)
    ends = np.cumsum(counts)
    tokens = column.flatten().to_numpy().astype(np.uint64)
    if masks is not None and masks.null_count < len(masks):
        masked = np.repeat(masks.is_valid().to_numpy(zero_copy_only=False), counts)
        tokens[masked] |= _CONTEXT * ~masks.flatten().to_numpy(zero_copy_only=False)
    places = np.arange(len(tokens), dtype=np.uint64) - np.repeat(ends - counts, counts).astype(
        np.uint64
    )
    hashed = mixed(tokens | (places + np.uint64(1)) << np.uint64(32))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashed)])  # wraps around
    found: Keys = sums[ends] - sums[ends - counts]
    return found


def pair_keys(
    prompts: pa.Array,
    chosen: pa.Array,
    rejected: pa.Array,
    chosen_masks: pa.Array | None = None,
    rejected_masks: pa.Array | None = None,
) -> Keys:
    """A key for each row, uint64 [rows]. A swapped pair's key differs only in the lowest bit.

    The absent response of an unpaired row has the key 0, so the same response with the other label
    is its swap.
    """
    good, bad = list_keys(chosen, chosen_masks), list_keys(rejected, rejected_masks)
    either = mixed(mixed(~list_keys(prompts)) + mixed(good) + mixed(bad))
    return (either & ~_ORDER) | (good < bad).astype(np.uint64)


def repeated(keys: Keys, source_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows repeat an earlier row of the data, bool [rows].

    Args:
        keys: of pair_keys, uint64 [rows].
        source_rows: position of each in the data, int64 [rows].
    """
    order = np.lexsort((source_rows, keys))
    again = np.zeros(len(keys), bool)
    again[order[1:]] = keys[order][1:] == keys[order][:-1]
    return again


def contradictory(keys: Keys) -> NDArray[np.bool_]:
    """Which rows also occur with the opposite preference, bool [rows]."""
    distinct = np.unique(keys)
    place = np.searchsorted(distinct, keys ^ _ORDER)
    place[place == len(distinct)] = 0
    found: NDArray[np.bool_] = distinct[place] == keys ^ _ORDER if len(distinct) else keys == 1
    return found


def mixed(values: Keys) -> Keys:
    """splitmix64's finalizer (Steele et al. 2014): each bit of the input changes half of all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
