"""Correlations, robust distances and histograms of numpy arrays."""

import numpy as np
from numpy.typing import NDArray

_MAD = 1.4826  # times the median absolute deviation is a normal distribution's standard deviation
_BINS = 40

Floats = NDArray[np.float64]


def pearson(x: Floats, y: Floats) -> float | None:
    """Linear correlation; None where there are too few values, or one of them is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Floats, y: Floats) -> float | None:
    """Correlation of the ranks, equal values sharing theirs."""
    return pearson(_ranks(x), _ranks(y))


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


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ranks[inverse])
