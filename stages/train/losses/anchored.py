"""Losses that look at each log-ratio by itself: where the chosen response goes is not left open."""

import torch
import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import NonNegative, Positive
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.pairwise import dpo
from reflogp.stages.train.losses.reference_free import sft


def dpop(pairs: PairLogps, *, beta: Positive = 0.3, dpop_lambda: NonNegative = 50.0) -> Tensor:
    """DPO-Positive: a chosen response that gets less likely than under the reference costs.

    Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive":
    the margin less `dpop_lambda` times max(0, -log-ratio of chosen), all of it times beta. The
    defaults are the paper's.
    """
    fallen = torch.relu(-pairs.chosen_logratios)
    return -F.logsigmoid(beta * (pairs.margins - dpop_lambda * fallen))


def rpo(pairs: PairLogps, *, beta: Positive = 0.1, rpo_alpha: NonNegative = 1.0) -> Tensor:
    """DPO plus the negative log-likelihood of a token of the chosen response.

    Pang et al. 2024, "Iterative Reasoning Preference Optimization". The paper's alpha, 1, weighs
    the DPO term; here it weighs the likelihood, as in TRL. The mean is over the tokens of the
    response, as in the paper.
    """
    return dpo(pairs, beta=beta) + rpo_alpha * sft(pairs)


def apo_zero(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, zero: chosen up, rejected down, each against 0.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7. For chosen responses that are better than what the policy writes.
    """
    chosen = torch.sigmoid(-beta * pairs.chosen_logratios)
    return chosen + torch.sigmoid(beta * pairs.rejected_logratios)


def apo_down(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, down: both down, the rejected response further.

    D'Oosterlinck et al. 2024, equation 8. For chosen responses that are worse than what the policy
    writes.
    """
    return torch.sigmoid(beta * pairs.chosen_logratios) + torch.sigmoid(-beta * pairs.margins)


def nca(pairs: PairLogps, *, beta: Positive = 0.01) -> Tensor:
    """Noise Contrastive Alignment over a pair: raises the likelihood of chosen in absolute terms.

    Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", the
    form for pairs (section 4.1). beta is the paper's alpha; 0.01 as in the authors' recipe.
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    noise = 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))
    return -F.logsigmoid(chosen) - noise


def bco(pairs: PairLogps, *, beta: Positive = 0.01, batch_shift: bool = False) -> Tensor:
    """Binary Classifier Optimization over a pair: is the response chosen, yes or no?

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section
    4. An upper bound of the DPO loss, whatever the shift of the rewards; the paper shifts them by a
    running mean of all rewards so far, which brings the bound down. Here the shift is 0, as in
    TRL's bco_pair, or the mean of the batch: a run would else go on from a checkpoint with a
    running mean that starts anew.

    Args:
        pairs: log-probs, sums.
        beta: pull towards the reference.
        batch_shift: subtract the mean reward of all responses in the forward pass, through which no
            gradient passes. It wants 8 pairs or more; of one pair alone it leaves twice the DPO
            loss at beta / 2, which no longer judges each response by itself.
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    if batch_shift:
        shift = (chosen + rejected).detach().mean() / 2
        chosen, rejected = chosen - shift, rejected - shift
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo(pairs: PairLogps, *, beta: Positive = 0.001) -> Tensor:
    """Self-Play Preference Optimization, hard: each log-ratio has a goal, +-1 / (2 beta).

    Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", equation 4.7
    with a winning probability of 1 or 0, where the paper estimates it with a preference model.
    1 / beta is the paper's eta, 1000; the loss starts at 2 * (eta / 2)^2, which is 500,000, and the
    clipped gradient sets the pace. The sum of both squares, as in TRL; the authors' code halves it.
    """
    goal = 1 / (2 * beta)
    return (pairs.chosen_logratios - goal) ** 2 + (pairs.rejected_logratios + goal) ** 2
