"""Similarity of two responses: 2 LCS / (|y_w| + |y_l|).

LCS is the length of the longest common subsequence of their token ids. The similarity is 1 for
equal responses, and 0 for responses without a common token. Only tokens that the policy writes
count: a tool's result that both responses contain does not make them alike.
"""

import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz.distance import Indel

from reflogp.stages.cache.columns import View, scored_views


def similarity(one: View, other: View, at_least: float = 0.0) -> float:
    """Similarity of two arrays of token ids, from 0 to 1. Below `at_least` it can be given as 0."""
    total = len(one) + len(other)
    least = math.floor(at_least * total)
    # Indel counts what is inserted and deleted, so its similarity is 2 LCS
    common = Indel.similarity(one.tolist(), other.tolist(), score_cutoff=least)
    return common / total if total else 1.0


def similarities(
    table: pa.Table, rows: NDArray[np.int64], at_least: float = 0.0
) -> NDArray[np.float64]:
    """Similarity of the responses of some rows, float64 [len(rows)]; NaN if one is missing.

    Args:
        table: with the token ids and masks of both responses, of paired rows.
        rows: positions in the table.
        at_least: a similarity below this can be given as 0, which is faster.
    """
    names = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("ids", "mask")]
    chosen, chosen_masks, rejected, rejected_masks = table.select(names).take(rows).columns
    sides = scored_views(chosen, chosen_masks), scored_views(rejected, rejected_masks)
    return np.array([
        math.nan if one is None or other is None else similarity(one, other, at_least)
        for one, other in zip(*sides, strict=True)
    ], np.float64)  # fmt: skip
