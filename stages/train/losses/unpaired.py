"""Losses of unpaired responses, each of which is good or bad."""

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
    """Kahneman-Tversky Optimization: weight - value of each response, as in prospect theory.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 7.
    A response is a gain or a loss relative to the reference point `rows.kl`; both saturate.

    Args:
        rows: log-probs, sums, with the reference point.
        beta: how fast gains and losses saturate.
        desirable_weight: for good responses. The paper keeps (desirable_weight * number of good
            responses) / (undesirable_weight * number of bad responses) between 1 and 4/3.
        undesirable_weight: for bad responses.

    Returns:
        The loss of each response, float64 [batch], like every loss of unpaired rows.
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
    """KTO with a reference point of 0, which is also APO-zero for unpaired responses.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7, one response at a time; TRL's apo_zero_unpaired. It needs no KL completions.
    """
    return kto(
        rows._replace(kl=torch.zeros_like(rows.kl)),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def bco_unpaired(rows: UnpairedLogps, *, beta: Positive = 0.01) -> Tensor:
    """Binary Classifier Optimization: classifies each response as good or bad.

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section
    4, with 0 instead of the running mean of the rewards, like `bco` for pairs: a cross-entropy
    whose logit is the reward. Unlike KTO, it does not saturate for responses far on the wrong side.
    """
    rewards = beta * rows.logratios
    return -F.logsigmoid(torch.where(rows.desirable, rewards, -rewards))


def kl_estimate(mean_logratio: Tensor) -> Tensor:
    """KTO's reference point, estimated from responses to other prompts (section 4.1).

    The estimate is biased, but has a low variance. It is clipped at 0, because the KL is never
    negative, and has no gradient.

    Args:
        mean_logratio: mean of log pi_theta(y_j|x_i) - log pi_ref(y_j|x_i), i != j, in nats.
    """
    return mean_logratio.detach().clamp(min=0)
