"""Losses of responses that are good or bad by themselves: no pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import NonNegative, Positive
from reflogp.stages.train.losses.inputs import UnpairedLogps


def kto(
    rows: UnpairedLogps,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """Kahneman-Tversky Optimization: weight - value of each response, as prospect theory has it.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 7.
    A response is a gain or a loss against the reference point `rows.kl`; both saturate.

    Args:
        rows: log-probs, sums, with the reference point.
        beta: how fast gains and losses saturate.
        desirable_weight: of good responses. The paper keeps the ratio of its product with the
            number of good responses to that of the bad ones between 1 and 4/3.
        undesirable_weight: of bad responses.

    Returns:
        The loss of each response, float64 [batch], as every loss here does.
    """
    gains = beta * (rows.logratios - rows.kl)
    good = desirable_weight * torch.sigmoid(-gains)
    bad = undesirable_weight * torch.sigmoid(gains)
    return torch.where(rows.desirable, good, bad)


def kto_no_kl(
    rows: UnpairedLogps,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """KTO with 0 for its reference point, which is APO-zero of unpaired responses as well.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7, a response at a time; TRL's apo_zero_unpaired. It needs no KL completions.
    """
    return kto(
        rows._replace(kl=torch.zeros_like(rows.kl)),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def bco_unpaired(rows: UnpairedLogps, *, beta: Positive = 0.01) -> Tensor:
    """Binary Classifier Optimization: is the response a good one, yes or no?

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section
    4, with 0 in place of the running mean of the rewards, as in the `bco` of pairs: a cross-entropy
    with the reward for its logit. Unlike KTO's it does not let go of a response that is far off.
    """
    rewards = beta * rows.logratios
    return -F.logsigmoid(torch.where(rows.desirable, rewards, -rewards))


def kl_estimate(mean_logratio: Tensor) -> Tensor:
    """KTO's reference point from prompts with responses to other prompts (section 4.1).

    It is biased but of low variance; the KL is never negative, so neither is this. No gradient
    passes through it.

    Args:
        mean_logratio: mean of log pi_theta(y_j|x_i) - log pi_ref(y_j|x_i), i != j, in nats.
    """
    return mean_logratio.detach().clamp(min=0)
