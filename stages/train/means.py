"""Metrics of pairs or rows, gathered over forward passes and processes into means."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


class Means:
    """Means over pairs of any number of named metrics."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Count in one value for each pair or row that has the metric, [rows]."""
        for name, values in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            found = float(values.detach().double().sum())
            self._sums[name] = total + found, count + len(values)

    def take(self, reduce: Reduce | None = None) -> dict[str, float]:
        """The means so far, over all processes if `reduce` is given; then begin anew.

        A process without a single pair must have added empty tensors: all must know the names.
        A metric that no row has is left out.
        """
        names, sums = list(self._sums), torch.tensor(list(self._sums.values()), dtype=torch.float64)
        self._sums = {}
        if reduce is not None and names:
            sums = reduce(sums)
        return {
            name: float(total / count)
            for name, (total, count) in zip(names, sums, strict=True)
            if count
        }
