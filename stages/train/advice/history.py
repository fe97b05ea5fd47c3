"""Logged metrics -> columns, and their means with standard errors."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


class Mean(NamedTuple):
    """A mean over steps and its standard error."""

    mean: float
    error: float

    def above(self, level: float, errors: float) -> bool:
        """Whether the mean exceeds `level` by more than this many standard errors."""
        return self.mean - level > errors * self.error

    def minus(self, other: "Mean") -> "Mean":
        """The difference of two means over different steps."""
        return Mean(self.mean - other.mean, math.hypot(self.error, other.error))

    def over(self, divisor: float) -> "Mean":
        """The mean and its error divided by a constant."""
        return Mean(self.mean / divisor, self.error / abs(divisor))

    def magnitude(self) -> "Mean":
        """The distance from 0."""
        return Mean(abs(self.mean), self.error)


class Logged:
    """Metrics of training steps or of evaluations, one value per log entry.

    Attributes:
        steps: float64 [n], optimizer step of each entry, ascending.
    """

    def __init__(self, entries: Sequence[Mapping[str, float]], prefix: str = "") -> None:
        self._entries = entries
        self._prefix = prefix
        self.steps = np.array([entry["step"] for entry in entries], np.float64)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Column:
        """float64 [n]; NaN where a step did not log it."""
        name = self._prefix + name
        return np.array([entry.get(name, math.nan) for entry in self._entries], np.float64)


def training(history: Sequence[Mapping[str, float]]) -> Logged:
    """The metrics of training steps."""
    return Logged([entry for entry in history if "loss" in entry])


def evaluations(history: Sequence[Mapping[str, float]]) -> Logged:
    """The metrics of evaluations, with names without eval_."""
    return Logged([entry for entry in history if "eval_loss" in entry], "eval_")


def mean_of(values: Column) -> Mean:
    """The mean of the finite values and its standard error; NaN if there are none.

    Each step has other pairs, so steps count as independent. A trend only makes the error larger.
    """
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Mean(float(values[0]) if len(values) else math.nan, math.inf)
    return Mean(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


def last(values: Column, share: float, fewest: int) -> Column:
    """The last `share` of the values, and at least `fewest`."""
    return values[-max(fewest, round(share * len(values))) :]
