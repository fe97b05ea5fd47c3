"""What is logged of a batch, and of a step, under the names that TRL uses."""

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


@torch.no_grad()
def metrics(result: Any, logps: Any, *, counted: bool) -> dict[str, Tensor]:
    """The values of a batch whose means are logged; none of a batch that is not counted.

    Args:
        result: PreferenceLoss or UnpairedLoss.
        logps: PairLogps or UnpairedLogps that it was computed from.
        counted: whether the rows count.
    """
    of = _of_unpaired if isinstance(logps, UnpairedLogps) else _of_pairs
    found = of(result, logps)
    return found if counted else {name: values[:0] for name, values in found.items()}


def completed(means: Mapping[str, float]) -> dict[str, float]:
    """`means` with what follows from them: of pairs rewards/length_correlation, of others margins.

    rewards/margins of unpaired rows are good less bad rewards. A side without a row counts as 0,
    the reference's own reward.
    """
    if "rewards/margins" in means or "rewards/accuracies" not in means:
        return correlated(means)
    margin = means.get("rewards/chosen", 0.0) - means.get("rewards/rejected", 0.0)
    return {**means, "rewards/margins": margin}


class ValuesOfRows:
    """What --best-metric can be, row by row of an evaluation, gathered over forward passes.

    The mean over all rows is the metric. A margin of unpaired rows is good less bad rewards, so
    each row has its own reward there, with its side's sign and the inverse of its side's share.
    """

    def __init__(self, rows: int) -> None:
        self._values = torch.zeros(len(_BEST) + 1, rows, dtype=torch.float64)  # and each row's side

    def put(self, places: list[int], result: Any, logps: Any) -> None:
        """The rows at these places of the data set, in the order of their batch."""
        of_unpaired = isinstance(logps, UnpairedLogps)
        found = (_of_unpaired if of_unpaired else _of_pairs)(result, logps)
        columns = [result.loss, found.get("rewards/margins"), found["rewards/accuracies"]]
        if of_unpaired:
            columns[1] = result.rewards
            columns.append(torch.where(logps.desirable, 1.0, -1.0))
        for row, column in zip(self._values, columns, strict=False):
            row[places] = column.detach().double().cpu()

    def take(self, reduce: Reduce | None = None) -> dict[str, NDArray[np.float64]]:
        """float64 [rows] of each metric, of all processes together."""
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


_MOMENTS = ("moments/margins", "moments/lengths", "moments/both")
_EQUAL = 1e-9  # of the mean square: below it, a variance is rounding


def moments(margins: Tensor, differences: Tensor) -> dict[str, Tensor]:
    """What `correlated` needs the means of.

    Args:
        margins: float64 [batch].
        differences: tokens of the chosen response less those of the rejected one, int64 [batch].
    """
    differences = differences.to(margins)
    values = margins**2, differences**2, margins * differences
    return dict(zip(_MOMENTS, values, strict=True))


def correlated(means: Mapping[str, float]) -> dict[str, float]:
    """`means` with rewards/length_correlation in place of the moments, where it is defined.

    Pearson's correlation of a pair's margin and its difference in length: 0 where what the policy
    learned has nothing to do with length; towards 1 (-1) where it prefers a response by the more,
    the longer (shorter) it is than the other one. How often the chosen one is longer is not in it:
    a mean shifts no correlation. Park et al. 2024, "Disentangling Length from Quality in Direct
    Preference Optimization", look at the same. Its mean over steps is 0 if the truth is, however
    few pairs a step has.
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
