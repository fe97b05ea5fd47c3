"""Correlations of two numpy arrays."""

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Linear correlation; None where there are too few values, or one of them is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Correlation of the ranks, equal values sharing theirs."""
    ranks = (pc.rank_quantile(values).to_numpy() for values in (x, y))
    return pearson(*ranks)
