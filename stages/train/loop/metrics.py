"""The metrics of batches and steps, under the names that TRL uses."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps
from reflogp.stages.train.losses.objective import PreferenceLoss, UnpairedLoss
from reflogp.stages.train.model.policy import Reduce

_BEST = ("loss", "rewards/margins", "rewards/accuracies")
_MOMENTS = ("moments/margins", "moments/lengths", "moments/both")
_EQUAL = 1e-9  # of the mean square; a smaller variance is a rounding error


@torch.no_grad()
def metrics(result: Any, logps: Any, *, counted: bool) -> dict[str, Tensor]:
    """The values of a batch whose means are logged.

    Args:
        result: PreferenceLoss or UnpairedLoss.
        logps: the PairLogps or UnpairedLogps that `result` was computed from.
        counted: whether the rows count; if not, the tensors are empty.
    """
    of = _of_unpaired if isinstance(logps, UnpairedLogps) else _of_pairs
    found = of(result, logps)
    return found if counted else {name: values[:0] for name, values in found.items()}


def completed(means: Mapping[str, float]) -> dict[str, float]:
    """Add metrics derived from `means`: rewards/length_correlation of pairs, margins otherwise.

    rewards/margins of unpaired rows is the mean good reward minus the mean bad one. A side without
    rows counts as 0, the reference's own reward.
    """
    if "rewards/margins" in means or "rewards/accuracies" not in means:
        return correlated(means)
    margin = means.get("rewards/chosen", 0.0) - means.get("rewards/rejected", 0.0)
    return {**means, "rewards/margins": margin}


class ValuesOfRows:
    """The possible values of --best-metric for each row of an evaluation.

    Their mean over all rows is the metric. For the margin of unpaired rows, good minus bad rewards,
    a row's value is its reward times its side's sign, divided by its side's share of the rows.
    """

    def __init__(self, rows: int) -> None:
        self._values = torch.zeros(len(_BEST) + 1, rows, dtype=torch.float64)  # and each row's side

    def put(self, places: list[int], result: Any, logps: Any) -> None:
        """Store the values of a batch, whose rows are at these positions of the data set."""
        of_unpaired = isinstance(logps, UnpairedLogps)
        found = (_of_unpaired if of_unpaired else _of_pairs)(result, logps)
        columns = [result.loss, found.get("rewards/margins"), found["rewards/accuracies"]]
        if of_unpaired:
            columns[1] = result.rewards
            columns.append(torch.where(logps.desirable, 1.0, -1.0))
        for row, column in zip(self._values, columns, strict=False):
            row[places] = column.detach().double().cpu()

    def take(self, reduce: Reduce | None = None) -> dict[str, NDArray[np.float64]]:
        """float64 [rows] of each metric, from all processes together."""
        values = self._values if reduce is None else reduce(self._values)
        sides = values[-1]
        for side in (1.0, -1.0):
            mask = sides == side
            values[1, mask] *= side * values.shape[1] / max(1, int(mask.sum()))
        return {name: row.numpy() for name, row in zip(_BEST, values, strict=False)}


def _of_pairs(result: PreferenceLoss, pairs: PairLogps) -> dict[str, Tensor]:
    margins = result.chosen_rewards - result.rejected_rewards
    return {
        "rewards/chosen": result.chosen_rewards,
        "rewards/rejected": result.rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": margins > 0,
        "rewards/margins_per_token": result.margins_per_token,
        "rewards/accuracies_per_token": result.margins_per_token > 0,
        "logps/chosen": pairs.policy_chosen,
        "logps/rejected": pairs.policy_rejected,
        "lengths/chosen": pairs.chosen_tokens,
        "lengths/rejected": pairs.rejected_tokens,
        **moments(margins, pairs.chosen_tokens - pairs.rejected_tokens),
    }


def _of_unpaired(result: UnpairedLoss, rows: UnpairedLogps) -> dict[str, Tensor]:
    good, bad = rows.desirable, ~rows.desirable
    return {
        "rewards/chosen": result.rewards[good],
        "rewards/rejected": result.rewards[bad],
        "rewards/accuracies": torch.where(good, result.gains > 0, result.gains < 0),
        "logps/chosen": rows.policy[good],
        "logps/rejected": rows.policy[bad],
        "lengths/chosen": rows.tokens[good],
        "lengths/rejected": rows.tokens[bad],
        "kl": rows.kl.expand(len(good)),
    }


class Means:
    """Means over pairs or rows, for any number of named metrics."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the values of a batch: one for each pair or row that has the metric."""
        for name, values in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            found = float(values.detach().double().sum())
            self._sums[name] = total + found, count + len(values)

    def take(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return the means so far, over all processes if `reduce` is given, and start again.

        A process without rows must have added empty tensors, since all processes need the same
        names. A metric that no row has is omitted.
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


def moments(margins: Tensor, differences: Tensor) -> dict[str, Tensor]:
    """The values whose means `correlated` needs.

    Args:
        margins: float64 [batch].
        differences: tokens of the chosen minus the rejected response, int64 [batch].
    """
    differences = differences.to(margins)
    values = margins**2, differences**2, margins * differences
    return dict(zip(_MOMENTS, values, strict=True))


def correlated(means: Mapping[str, float]) -> dict[str, float]:
    """Replace the moments in `means` by rewards/length_correlation, if it is defined.

    This is Pearson's correlation of a pair's margin and its difference in length. It is 0 if the
    policy's preference has nothing to do with length, and near 1 (-1) if a response is preferred
    more, the longer (shorter) it is than the other. How often the chosen response is longer does
    not matter, because a mean does not change a correlation. Park et al. 2024, "Disentangling
    Length from Quality in Direct Preference Optimization", use it too. If the true correlation is
    0, so is the expected mean over steps, even with few pairs per step.
    """
    found = {name: mean for name, mean in means.items() if name not in _MOMENTS}
    if not means.keys() >= {*_MOMENTS}:
        return found
    margins, lengths, both = (means[name] for name in _MOMENTS)
    margin = means["rewards/margins"]
    length = means["lengths/chosen"] - means["lengths/rejected"]
    variances = margins - margin**2, lengths - length**2
    if variances[0] > _EQUAL * margins and variances[1] > _EQUAL * lengths:
        correlation = (both - margin * length) / math.sqrt(variances[0] * variances[1])
        found["rewards/length_correlation"] = correlation
    return found
