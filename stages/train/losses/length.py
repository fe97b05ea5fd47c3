"""Losses that reduce the influence of response length on the preference."""

import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import Fraction, NonNegative, Positive
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.pairwise import dpo


def dpo_norm(pairs: PairLogps, *, beta: Positive = 5.0) -> Tensor:
    """Length-normalized DPO: DPO with the mean log-ratio per token.

    Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training".
    Means are about a hundred times smaller than sums, so beta is larger: 5 in the paper.
    """
    return dpo(pairs.per_token(), beta=beta)


def rdpo(pairs: PairLogps, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Tensor:
    """R-DPO: DPO with a reward of `alpha` per token.

    Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization". A
    longer chosen response gets part of its margin from its length, so the policy has less to
    learn from it. A shorter one must be preferred by more.

    Args:
        pairs: log-probs, sums, and lengths.
        beta: pull towards the reference.
        alpha: reward per token, in units of the reward; beta does not scale it.
    """
    margins = pairs.margins
    # a Python float times an int64 tensor would give float32
    difference = (pairs.chosen_tokens - pairs.rejected_tokens).to(margins)
    return -F.logsigmoid(beta * margins + alpha * difference)


def ld_dpo(pairs: PairLogps, *, beta: Positive = 0.1, ld_alpha: Fraction = 0.5) -> Tensor:
    """LD-DPO: tokens beyond the shorter response's length count `ld_alpha` times.

    Liu et al. 2024, "Length Desensitization in Direct Preference Optimization": a response's
    log-prob is that of its first min(|y_w|, |y_l|) tokens plus `ld_alpha` times the rest, for
    policy and reference, as in TRL.

    Args:
        pairs: log-probs, sums, with `shared`.
        beta: pull towards the reference.
        ld_alpha: 1 is DPO; 0 compares equal lengths only.

    Raises:
        ValueError: `pairs.shared` is None.
    """
    if pairs.shared is None:
        raise ValueError("ld_dpo needs the sums over the shared length: PairLogps.shared is None")
    margins = ld_alpha * pairs.margins + (1 - ld_alpha) * pairs.shared.margins
    return -F.logsigmoid(beta * margins)
