"""What is logged of a batch, and of a step, under the names that TRL uses."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.train.length_correlation import correlated, moments
from stages.train.losses.inputs import PairLogps, UnpairedLogps
from stages.train.losses.objective import PreferenceLoss, UnpairedLoss


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
