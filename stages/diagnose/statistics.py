"""Robust distances and histograms of numpy arrays, and figures as words."""

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.diagnose.diagnosis import Severity
from reflogp.stages.diagnose.measures import Floats, Measures

_MAD = 1.4826  # times the median absolute deviation is a normal distribution's standard deviation
_BINS = 40


def centre_and_spread(values: Floats) -> tuple[float, float]:
    """Median, and standard deviation as the middle half of the values has it; NaN is left out."""
    centre = float(np.nanmedian(values))
    return centre, _MAD * float(np.nanmedian(np.abs(values - centre)))


def robust_distance(values: Floats) -> Floats:
    """How many standard deviations each value is from the median."""
    centre, spread = centre_and_spread(values)
    return np.asarray((values - centre) / spread if spread > 0 else np.zeros_like(values))


def edges(values: Floats, quantum: float = 0.0) -> Floats:
    """Borders of histogram bins over all but the farthest 0.5% at each end, float64 [bins + 1].

    Args:
        values: finite.
        quantum: the least width of a bin that makes sense, such as 1 for counts.
    """
    low, high = np.quantile(values, [0.005, 0.995])
    width = max((high - low) / _BINS, quantum) or 1.0
    bins = max(1, int(np.ceil((high - low) / width)))
    start = low - width / 2 if quantum else low
    return np.asarray(start + width * np.arange(bins + 2 if quantum else bins + 1))


def histogram(values: Floats, borders: Floats) -> list[int]:
    """How many values are in each bin; the outermost bins hold what is beyond them."""
    inside = np.clip(values, borders[0], borders[-1])
    return [int(count) for count in np.histogram(inside, borders)[0]]


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


def grade(value: float, warning: float, problem: float) -> Severity:
    """Of a value from which on it is a warning, and a problem."""
    return "problem" if value >= problem else "warning" if value >= warning else "fine"


def beyond_chance(share: float, count: int) -> bool:
    """Whether a share of `count` draws is more than two standard errors from one half."""
    return bool(abs(share - 0.5) > 1 / np.sqrt(max(count, 1)))


def signed(value: float | None) -> str:
    """A correlation for people."""
    return "none" if value is None else f"{value:+.2f}"


def counted(number: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {one if number == 1 else many}"
