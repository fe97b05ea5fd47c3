"""Correlations of two numpy arrays."""

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Pearson's correlation; None for fewer than three values, or if one array is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation; equal values share a rank."""
    ranks = (pc.rank_quantile(values).to_numpy() for values in (x, y))
    return pearson(*ranks)
