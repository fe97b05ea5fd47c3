"""Combines losses by name and weight into one objective, and adds the rewards for logging."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reflogp.stages.train.losses.arguments import parameters
from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps
from reflogp.stages.train.losses.registry import EVERY_LOSS, LOSSES, UNPAIRED_LOSSES

Weighting = Literal["none", "wpo"]


class PreferenceLoss(NamedTuple):
    """The loss and rewards of each pair. All float64 [batch].

    Attributes:
        loss: the loss of each pair, before the mean over the batch.
        chosen_rewards: beta times the chosen response's log-ratio; or times its log-prob if no
            loss uses the reference. Has no gradient.
        rejected_rewards: the same for the rejected response.
        margins_per_token: chosen minus rejected reward, each divided by its response's tokens.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins_per_token: Tensor


class UnpairedLoss(NamedTuple):
    """The loss and reward of each unpaired row. All float64 [batch].

    Attributes:
        loss: the loss of each row, before the mean over the batch.
        rewards: beta times the response's log-ratio. Has no gradient.
        gains: the reward minus beta times the reference point.
    """

    loss: Tensor
    rewards: Tensor
    gains: Tensor


Objective = Callable[[Any], Any]
"""PairLogps -> PreferenceLoss, or UnpairedLogps -> UnpairedLoss."""


def objective(
    loss_weights: Mapping[str, float],
    *,
    beta: float,
    arguments: Mapping[str, Any] | None = None,
    weighting: Weighting = "none",
) -> Objective:
    """Build the weighted sum of losses, as one function of pairs or of unpaired rows.

    Args:
        loss_weights: the weight of each loss, by its name in registry.py.
        beta: for all of the losses, and for the rewards.
        arguments: further keyword arguments; each goes to every loss that has it.
        weighting: "wpo" weights each pair by its likelihood under the policy.
    """
    given = {"beta": beta, **(arguments or {})}
    total = _weighted(loss_weights, given)
    if unpaired(loss_weights):
        return lambda rows: _of_unpaired(rows, total(rows), beta)
    reference = uses(loss_weights, "reference")
    of_means = rewards_are_means(loss_weights)

    def evaluate(pairs: PairLogps) -> PreferenceLoss:
        loss = total(pairs)
        if weighting == "wpo":
            loss = loss * wpo_weights(pairs)
        means = pairs.per_token()
        chosen, rejected = rewards(means if of_means else pairs, beta, reference)
        chosen_mean, rejected_mean = rewards(means, beta, reference)
        return PreferenceLoss(loss, chosen, rejected, chosen_mean - rejected_mean)

    return evaluate


def rewards_are_means(loss_weights: Mapping[str, float]) -> bool:
    """Whether rewards are beta times the mean log-prob per token (SimPO, ORPO), not the sum."""
    return not uses(loss_weights, "reference") and LOSSES[next(iter(loss_weights))].mean_reward


def uses(names: Iterable[str], need: str) -> bool:
    """Whether any of the losses has this need (see registry.Need)."""
    return any(need in EVERY_LOSS[name].needs for name in names)


def unpaired(names: Iterable[str]) -> bool:
    """Whether the losses take unpaired rows. No combination takes both rows and pairs."""
    return any(name in UNPAIRED_LOSSES for name in names)


def _weighted(
    loss_weights: Mapping[str, float], given: Mapping[str, Any]
) -> Callable[[Any], Tensor]:
    """The weighted sum of losses. Each loss gets only the arguments that it has."""
    terms = [(weight, EVERY_LOSS[name].function) for name, weight in loss_weights.items()]

    def total(rows: Any) -> Tensor:
        parts = []
        for weight, function in terms:
            own = {name: given[name] for name in parameters(function) if name in given}
            parts.append(weight * function(rows, **own))
        return torch.stack(parts).sum(0)

    return total


def _of_unpaired(rows: UnpairedLogps, loss: Tensor, beta: float) -> UnpairedLoss:
    rewards = beta * rows.logratios.detach()
    return UnpairedLoss(loss, rewards, rewards - beta * rows.kl)


@torch.no_grad()
def rewards(pairs: PairLogps, beta: float, reference: bool) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and rejected: beta times the log-ratio, or the log-prob if no reference."""
    if reference:
        return beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return beta * pairs.policy_chosen, beta * pairs.policy_rejected


@torch.no_grad()
def wpo_weights(pairs: PairLogps) -> Tensor:
    """Weighted Preference Optimization: how likely the policy is to write the pair itself.

    Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", equation 2 with
    sampled alignment. Each response has a factor: the geometric mean over its tokens of p(y_t) /
    sum_v p(v)^2. The denominator is the expected p(y_t) of a token that the policy samples. The
    weight is the product of both factors and has no gradient.

    The weight is at most 1, as in the authors' code, so no pair counts more than in DPO. Text that
    is likelier than the policy's samples, such as greedy text, would exceed 1. The paper's equation
    and TRL (1.16) have no such bound.

    Returns:
        float64 [batch], in (0, 1].

    Raises:
        ValueError: `pairs` have no log-squares.
    """
    if pairs.chosen_log_squares is None or pairs.rejected_log_squares is None:
        raise ValueError(
            "WPO needs the squares of each token: PairLogps.chosen_log_squares is None"
        )
    chosen = (pairs.policy_chosen - pairs.chosen_log_squares) / pairs.chosen_tokens
    rejected = (pairs.policy_rejected - pairs.rejected_log_squares) / pairs.rejected_tokens
    return torch.exp(chosen + rejected).clamp(max=1)
