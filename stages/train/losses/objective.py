"""What is minimized: losses by name, with weights, and the rewards that are logged beside them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reflogp.stages.train.losses.arguments import parameters
from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps
from reflogp.stages.train.losses.registry import EVERY_LOSS, LOSSES, UNPAIRED_LOSSES

Weighting = Literal["none", "wpo"]


class PreferenceLoss(NamedTuple):
    """What is minimized and logged of each pair. All float64 [batch].

    Attributes:
        loss: what is minimized, before the mean over the batch.
        chosen_rewards: beta times the log-ratio of the chosen response; where no loss uses the
            reference, beta times its log-prob. Carries no gradient.
        rejected_rewards: the same of the rejected response.
        margins_per_token: chosen minus rejected reward, each over its tokens.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins_per_token: Tensor


class UnpairedLoss(NamedTuple):
    """What is minimized and logged of each unpaired row. All float64 [batch].

    Attributes:
        loss: what is minimized, before the mean over the batch.
        rewards: beta times the log-ratio of the response. Carries no gradient.
        gains: the same less beta times the reference point.
    """

    loss: Tensor
    rewards: Tensor
    gains: Tensor


Objective = Callable[[Any], Any]
"""PairLogps -> PreferenceLoss, or UnpairedLogps -> UnpairedLoss."""


def objective(
    weights: Mapping[str, float],
    *,
    beta: float,
    arguments: Mapping[str, Any] | None = None,
    weighting: Weighting = "none",
) -> Objective:
    """The weighted sum of losses, as one function of the pairs, or of unpaired rows.

    Args:
        weights: names of losses (registry.py), each with its weight.
        beta: of all of them, and of the rewards.
        arguments: more keyword arguments; each goes to every loss that has it.
        weighting: "wpo" weighs each pair by its likelihood under the policy.
    """
    given = {"beta": beta, **(arguments or {})}
    total = _weighted(weights, given)
    if unpaired(weights):
        return lambda rows: _of_unpaired(rows, total(rows), beta)
    reference = uses(weights, "reference")
    of_means = rewards_are_means(weights)

    def evaluate(pairs: PairLogps) -> PreferenceLoss:
        loss = total(pairs)
        if weighting == "wpo":
            loss = loss * wpo_weights(pairs)
        means = pairs.per_token()
        chosen, rejected = rewards(means if of_means else pairs, beta, reference)
        chosen_mean, rejected_mean = rewards(means, beta, reference)
        return PreferenceLoss(loss, chosen, rejected, chosen_mean - rejected_mean)

    return evaluate


def rewards_are_means(weights: Mapping[str, float]) -> bool:
    """Whether rewards are beta times the mean log-prob of a token (SimPO, ORPO), not the sum."""
    return not uses(weights, "reference") and LOSSES[next(iter(weights))].mean_reward


def uses(names: Iterable[str], need: str) -> bool:
    """Whether any of the losses needs it (see registry.Need)."""
    return any(need in EVERY_LOSS[name].needs for name in names)


def unpaired(names: Iterable[str]) -> bool:
    """Whether the losses are over unpaired rows; none is over both."""
    return any(name in UNPAIRED_LOSSES for name in names)


def _weighted(weights: Mapping[str, float], given: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """The weighted sum of losses; each takes of the arguments what it has."""
    terms = [(weight, EVERY_LOSS[name].function) for name, weight in weights.items()]

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
    """Rewards of chosen and rejected: beta times log-ratios, or log-probs without a reference."""
    if reference:
        return beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return beta * pairs.policy_chosen, beta * pairs.policy_rejected


@torch.no_grad()
def wpo_weights(pairs: PairLogps) -> Tensor:
    """Weighted Preference Optimization: how likely the policy is to write the pair itself.

    Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", equation 2 with
    the sampled alignment: for each response the geometric mean, over its tokens, of p(y_t) divided
    by sum_v p(v)^2, which is what p(y_t) is on average for a token that the policy samples; the
    weight is the product of both. No gradient passes through it.

    It is at most 1, as in the authors' code, so that no pair counts more than it does in DPO: text
    that is likelier than what the policy samples, as greedy text is, would exceed it. The paper's
    equation and TRL (1.16) have no such bound.

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
