"""Losses of the margin alone: the difference between the two log-ratios of a pair."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reflogp.stages.train.losses.arguments import FlipRate, InnerFraction, Positive
from reflogp.stages.train.losses.inputs import PairLogps


def dpo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Direct Preference Optimization: -log sigmoid(beta * margin).

    Rafailov et al. 2023, equation 7. A pair's gradient is weighted by sigmoid(-beta * margin), so a
    pair that is already in the right order has little effect.

    Args:
        pairs: log-probs, sums.
        beta: pull towards the reference; 0.01 to 0.5.

    Returns:
        The loss of each pair, float64 [batch], like every loss of pairs.
    """
    return -F.logsigmoid(beta * pairs.margins)


def cdpo(pairs: PairLogps, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Conservative DPO: the cross-entropy with labels that are wrong with a known probability.

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO". Its minimum is at
    sigmoid(beta * margin) = 1 - label_smoothing, so margins do not grow forever.
    """
    return _smoothed(beta * pairs.margins, label_smoothing)


def robust(pairs: PairLogps, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Robust DPO (rDPO): an unbiased estimate of the DPO loss for the labels before they flipped.

    Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback".
    Unlike cDPO it has no minimum: it subtracts the wrong labels instead of fitting them.
    """
    logits = beta * pairs.margins
    kept, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(pairs: PairLogps, *, beta: Positive = 0.1, per_token: bool = True) -> Tensor:
    """Identity Preference Optimization: (margin - 1 / (2 beta))^2, a goal for the margin.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", equation 17; beta is its tau.

    Args:
        pairs: log-probs, sums.
        beta: sets the goal of the margin, 1 / (2 beta). At 0.1 the goal is 5 nats, which the mean
            per token hardly reaches, so every pair keeps pulling; at 1 it is 0.5.
        per_token: use means over tokens, like TRL (whose source is the paper's authors) and HALOs.
            False uses sums, like the paper's text, the original DPO code and OpenRLHF.
    """
    margins = pairs.per_token().margins if per_token else pairs.margins
    return (margins - 1 / (2 * beta)) ** 2


def hinge(pairs: PairLogps, *, beta: Positive = 0.05) -> Tensor:
    """Hinge loss: max(0, 1 - beta * margin). A pair whose margin is large enough has no effect.

    SLiC-HF (Zhao et al. 2023) with the log-ratio instead of the log-prob: `hinge-norm` in Liu et
    al. 2023, "Statistical Rejection Sampling Improves Preference Optimization" (RSO).
    """
    return torch.relu(1 - beta * pairs.margins)


def exo(
    pairs: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3,
) -> Tensor:
    """Efficient Exact Optimization of a pair: the reverse KL between two-way distributions.

    Ji et al. 2024, "Towards Efficient and Exact Optimization of Language Model Alignment", equation
    16: KL(q || p) of q = (sigmoid(beta * margin), rest) from p = (1 - label_smoothing, rest).
    TRL advises a `label_smoothing` of 0.001. The authors' code uses exp(-10), and its p does not
    sum to 1. Their beta is 0.1 or 0.5, depending on the task.
    """
    logits = beta * pairs.margins
    chosen = F.logsigmoid(logits) - math.log1p(-label_smoothing)
    rejected = F.logsigmoid(-logits) - math.log(label_smoothing)
    return torch.sigmoid(logits) * chosen + torch.sigmoid(-logits) * rejected


def discopop(pairs: PairLogps, *, beta: Positive = 0.05, tau: InnerFraction = 0.05) -> Tensor:
    """DiscoPOP: logistic for negative margins, exponential for positive ones.

    Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language
    Models", equation 5. The two are blended by sigmoid(beta * margin / tau). The loss is not
    monotone. At 0, where training starts, its slope in beta * margin is (1 - log 2) / (4 tau) -
    3/4, so for tau below (1 - log 2) / 3 = 0.1023 the loss grows with the margin. At the paper's
    0.05, a pair moves to a minimum at beta * margin = -0.119 until other pairs carry it over the
    maximum at 0.072.
    """
    logits = beta * pairs.margins
    logistic = -F.logsigmoid(logits) * torch.sigmoid(-logits / tau)
    # exp(-logits) alone can overflow where its weight is 0; the sum of exponents cannot (tau < 1)
    exponential = torch.exp(F.logsigmoid(logits / tau) - logits)
    return logistic + exponential


def aot(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Alignment via Optimal Transport: the batch's margins should dominate the reference's.

    Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", the
    paired form: the logistic loss of sorted policy margins minus sorted reference margins. It
    compares distributions, so it needs many pairs in one forward pass; with one pair it is DPO. The
    sort is hard; the paper also tries a soft one.

    Returns:
        float64 [batch], one loss per quantile of the batch, not in the order of the pairs.
    """
    policy = (pairs.policy_chosen - pairs.policy_rejected).sort().values
    reference = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return -F.logsigmoid(beta * (policy - reference))


def aot_unpaired(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """AOT between the log-ratios of the batch's chosen responses and those of its rejected ones.

    Melnyk et al. 2024, the unpaired form. See `aot`.
    """
    chosen, rejected = pairs.chosen_logratios.sort().values, pairs.rejected_logratios.sort().values
    return -F.logsigmoid(beta * (chosen - rejected))


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    kept, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return (1 - label_smoothing) * kept + label_smoothing * flipped
