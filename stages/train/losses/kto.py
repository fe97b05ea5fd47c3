"""KTO: responses that are good or bad by themselves, no pairs.

Its reference point is an estimate of KL(pi_theta || pi_ref), taken from responses to other prompts:
it needs log-probs of sequences that no preference holds, under the policy and the reference.
"""

import torch
from torch import Tensor

from stages.train.losses.arguments import NonNegative, Positive


def kto(
    logratios: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """Kahneman-Tversky Optimization: weight - value of each response, as prospect theory has it.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization".
    A response is a gain or a loss against the reference point `kl`; both saturate.

    Args:
        logratios: log pi_theta(y|x) - log pi_ref(y|x), float64 [batch], in nats.
        desirable: bool [batch], True where the response is good.
        kl: the reference point, float64 scalar, as `kl_estimate` gives it.
        beta: how fast gains and losses saturate.
        desirable_weight: of good responses. The paper keeps the ratio of its product with the
            number of good responses to that of the bad ones between 1 and 4/3.
        undesirable_weight: of bad responses.

    Returns:
        The loss of each response, float64 [batch].
    """
    gains = beta * (logratios - kl)
    good = desirable_weight * torch.sigmoid(-gains)
    bad = undesirable_weight * torch.sigmoid(gains)
    return torch.where(desirable, good, bad)


def kl_estimate(mismatched_logratios: Tensor) -> Tensor:
    """KTO's reference point from prompts paired with responses to other prompts.

    A mean that is biased but of low variance; the KL is never negative, so neither is this. No
    gradient passes through it.

    Args:
        mismatched_logratios: log pi_theta(y_j|x_i) - log pi_ref(y_j|x_i), i != j, [batch], in nats.
    """
    return mismatched_logratios.detach().mean().clamp(min=0)
