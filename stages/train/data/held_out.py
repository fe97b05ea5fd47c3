"""Which pairs of a cache are held out of training, to measure it on."""

import math
from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.train.data.cached_rows import Rows


def held_out(pairs: Rows, share: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Part a cache's rows into those to train on and those to evaluate on.

    All pairs of one prompt are on one side: a prompt that was trained on tells nothing of others.
    Which prompts are held out depends on their token ids and the seed, and not on where they stand.

    Args:
        pairs: of the cache.
        share: of the rows to hold out; the prompt that reaches it is the last one.
        seed: of the draw.

    Returns:
        The positions of both, in ascending order.
    """
    if not share:
        return range(len(pairs)), range(0)
    salt = seed.to_bytes(8, "big")
    drawn = np.empty(len(pairs), np.uint64)  # 8 bytes a row: there can be a hundred million
    for row in range(len(pairs)):
        prompt = pairs[row].prompt_ids.tobytes()
        digest = blake2b(prompt, digest_size=16, salt=salt).digest()
        drawn[row] = int.from_bytes(digest[:8], "big")
    wanted = min(math.ceil(share * len(pairs)), len(pairs))
    last = np.partition(drawn, wanted - 1)[wanted - 1]
    return _positions(drawn > last), _positions(drawn <= last)


def _positions(mask: NDArray[np.bool_]) -> Sequence[int]:
    positions = array("q")  # whose items, unlike NumPy's, are plain numbers
    positions.frombytes(np.flatnonzero(mask).astype(np.int64, copy=False).view(np.uint8).data)
    return positions
