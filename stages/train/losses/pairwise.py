"""Losses of the margin alone: the difference of the two log-ratios of a pair."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reflogp.stages.train.losses.arguments import FlipRate, InnerShare, Positive
from reflogp.stages.train.losses.inputs import PairLogps


def dpo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Direct Preference Optimization: -log sigmoid(beta * margin).

    Rafailov et al. 2023, equation 7. The gradient of a pair is weighted by sigmoid(-beta * margin):
    a pair that is ordered rightly already teaches little.

    Args:
        pairs: log-probs, sums.
        beta: pull towards the reference; 0.01 to 0.5.

    Returns:
        The loss of each pair, float64 [batch], as every loss here does.
    """
    return -F.logsigmoid(beta * pairs.margins)


def cdpo(pairs: PairLogps, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Conservative DPO: the cross-entropy with labels that are wrong with a known probability.

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO". It is least
    where sigmoid(beta * margin) = 1 - label_smoothing, so a margin cannot grow for ever.
    """
    return _smoothed(beta * pairs.margins, label_smoothing)


def robust(pairs: PairLogps, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Robust DPO (rDPO): an unbiased estimate of the DPO loss of the labels before they flipped.

    Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy
    Feedback". Unlike cDPO it has no minimum: the
    wrong labels are subtracted, not fitted.
    """
    logits = beta * pairs.margins
    kept, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(pairs: PairLogps, *, beta: Positive = 0.1, per_token: bool = True) -> Tensor:
    """Identity Preference Optimization: (margin - 1 / (2 beta))^2, a margin with a goal.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", equation 17; beta is its tau.

    Args:
        pairs: log-probs, sums.
        beta: the goal of the margin is 1 / (2 beta): at 0.1 it is 5 nats, which the mean of a token
            hardly reaches, so that all pairs pull all the time; at 1 it is 0.5.
        per_token: take means over the tokens, as TRL does (on the word of the paper's authors) and
            HALOs; False: sums, as in the paper's text, the original DPO code and OpenRLHF.
    """
    margins = pairs.per_token().margins if per_token else pairs.margins
    return (margins - 1 / (2 * beta)) ** 2


def hinge(pairs: PairLogps, *, beta: Positive = 0.05) -> Tensor:
    """Hinge loss: max(0, 1 - beta * margin). A pair that is ordered well enough teaches nothing.

    SLiC-HF (Zhao et al. 2023) with the log-ratio in place of the log-prob, which is `hinge-norm` in
    Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization" (RSO).
    """
    return torch.relu(1 - beta * pairs.margins)


def exo(
    pairs: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3,
) -> Tensor:
    """Efficient Exact Optimization over a pair: the reverse KL between two-way distributions.

    Ji et al. 2024, "Towards Efficient and Exact Optimization of Language Model Alignment", equation
    16: KL(q || p) of q = (sigmoid(beta * margin), rest) from p = (1 - label_smoothing, rest).
    A `label_smoothing` of 0.001 is TRL's advice; the authors' code takes exp(-10) and does not make
    p sum to 1. Their beta is 0.1 or 0.5, with the task.
    """
    logits = beta * pairs.margins
    chosen = F.logsigmoid(logits) - math.log1p(-label_smoothing)
    rejected = F.logsigmoid(-logits) - math.log(label_smoothing)
    return torch.sigmoid(logits) * chosen + torch.sigmoid(-logits) * rejected


def discopop(pairs: PairLogps, *, beta: Positive = 0.05, tau: InnerShare = 0.05) -> Tensor:
    """DiscoPOP: logistic where the margin is negative, exponential where it is positive.

    Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language
    Models", equation 5. The blend is sigmoid(beta * margin / tau). It is not monotone: at 0, where
    training starts, its slope by beta * margin is (1 - log 2) / (4 tau) - 3/4, so below tau =
    (1 - log 2) / 3 = 0.1023 the loss grows with the margin. At the paper's 0.05 a pair is driven to
    beta * margin = -0.119, a minimum, until others carry it over the top at 0.072.
    """
    logits = beta * pairs.margins
    logistic = -F.logsigmoid(logits) * torch.sigmoid(-logits / tau)
    # exp(-logits) alone overflows where its weight is 0; in one exponent it does not (tau < 1)
    exponential = torch.exp(F.logsigmoid(logits / tau) - logits)
    return logistic + exponential


def aot(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Alignment via Optimal Transport: the margins of the batch must dominate the reference's.

    Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", the
    paired form: logistic loss of the sorted policy margins less the sorted reference margins. It
    compares distributions, so it wants many pairs in one forward pass; with one it is DPO. Sorted
    hard, without the soft sorting that the paper tries too.

    Returns:
        float64 [batch], of the quantiles of the batch: not in the order of the pairs.
    """
    policy = (pairs.policy_chosen - pairs.policy_rejected).sort().values
    reference = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return -F.logsigmoid(beta * (policy - reference))


def aot_unpaired(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """AOT between the log-ratios of all chosen and of all rejected responses of the batch.

    Melnyk et al. 2024, the unpaired form. See `aot`.
    """
    chosen, rejected = pairs.chosen_logratios.sort().values, pairs.rejected_logratios.sort().values
    return -F.logsigmoid(beta * (chosen - rejected))


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    kept, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return (1 - label_smoothing) * kept + label_smoothing * flipped
