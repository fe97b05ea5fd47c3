"""What is logged of a batch, and of a step, under the names that TRL uses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.train.length_correlation import correlated, moments
from stages.train.losses.inputs import PairLogps, UnpairedLogps
from stages.train.losses.objective import PreferenceLoss, UnpairedLoss
from stages.train.means import Reduce

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
