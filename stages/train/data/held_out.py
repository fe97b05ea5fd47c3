"""Decides which rows of a cache are held out of training for evaluation."""

import math
from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.train.data.cached_rows import CachedRows


def held_out(pairs: CachedRows, share: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Split a cache's rows into those to train on and those to evaluate on.

    All rows of a prompt go to the same side, because a prompt seen in training says nothing about
    others. Which prompts are held out depends on their token ids and the seed, not on the order of
    the rows.

    Args:
        pairs: the rows of the cache.
        share: of the rows to hold out, rounded up to whole prompts.
        seed: for the draw.

    Returns:
        The positions of both, in ascending order.
    """
    if not share:
        return range(len(pairs)), range(0)
    salt = seed.to_bytes(8, "big")
    drawn = np.empty(len(pairs), np.uint64)  # 8 bytes per row, of up to a hundred million rows
    for row in range(len(pairs)):
        prompt = pairs[row].prompt_ids.tobytes()
        digest = blake2b(prompt, digest_size=16, salt=salt).digest()
        drawn[row] = int.from_bytes(digest[:8], "big")
    wanted = min(math.ceil(share * len(pairs)), len(pairs))
    last = np.partition(drawn, wanted - 1)[wanted - 1]
    return _positions(drawn > last), _positions(drawn <= last)


def _positions(mask: NDArray[np.bool_]) -> Sequence[int]:
    positions = array("q")  # its items are plain integers, unlike NumPy's
    positions.frombytes(np.flatnonzero(mask).astype(np.int64, copy=False).view(np.uint8).data)
    return positions
