"""Losses that take the length of the responses out of the preference."""

import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import NonNegative, Positive, Share
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.pairwise import dpo


def dpo_norm(pairs: PairLogps, *, beta: Positive = 5.0) -> Tensor:
    """Length-normalized DPO: DPO of the mean log-ratio of a token.

    Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training".
    Means are some hundred times smaller than sums, so beta is larger: 5 in the paper.
    """
    return dpo(pairs.per_token(), beta=beta)


def rdpo(pairs: PairLogps, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Tensor:
    """R-DPO: DPO whose reward pays `alpha` for each token.

    Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization". A
    chosen response that is longer starts with part of the margin, so the policy need
    not grow it; one that is shorter must be preferred by more.

    Args:
        pairs: log-probs, sums, and lengths.
        beta: pull towards the reference.
        alpha: price of a token, in units of the reward, so not times beta.
    """
    margins = pairs.margins
    # a float times integers would be float32
    difference = (pairs.chosen_tokens - pairs.rejected_tokens).to(margins)
    return -F.logsigmoid(beta * margins + alpha * difference)


def ld_dpo(pairs: PairLogps, *, beta: Positive = 0.1, ld_alpha: Share = 0.5) -> Tensor:
    """LD-DPO: what a response has beyond the length of the shorter one counts `ld_alpha` times.

    Liu et al. 2024, "Length Desensitization in Direct Preference Optimization": log-probs are those
    of the first min(|y_w|, |y_l|) tokens plus `ld_alpha` times the rest; policy and reference
    alike, as in TRL.

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
