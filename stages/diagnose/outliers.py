"""Which rows are worth a look: far from the others, near-identical, or cut to the same length."""

import numpy as np
from numpy.typing import NDArray

from stages.diagnose.measures import Floats, Measures
from stages.diagnose.statistics import robust_distance

FAR = 6.0
"""Standard deviations, by the median absolute deviation, from which a response is an outlier."""


def distance(measures: Measures) -> Floats:
    """How far a row's responses are from all others, in standard deviations, float64 [rows].

    By log-prob a token and by the logarithm of the length; the farther of both responses counts.
    """
    values = [
        np.concatenate(sides)
        for sides in (
            (measures.chosen_per_token, measures.rejected_per_token),
            (_log(measures.chosen_tokens), _log(measures.rejected_tokens)),
        )
    ]
    farthest = np.fmax(*(np.abs(robust_distance(both)) for both in values))
    found: Floats = np.nan_to_num(np.fmax(*np.split(farthest, 2)))
    return found


def is_far(measures: Measures) -> NDArray[np.bool_]:
    """Which rows have an outlier, bool [rows]."""
    found: NDArray[np.bool_] = distance(measures) > FAR
    return found


def _log(tokens: NDArray[np.int64]) -> Floats:
    """NaN where there is no response."""
    return np.asarray(np.log(np.where(tokens > 0, tokens, np.nan)))
