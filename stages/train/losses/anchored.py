"""Losses that use each log-ratio by itself, so they also say where the chosen response should go.

A loss of the margin alone is satisfied if both responses get less likely.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import NonNegative, Positive
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.pairwise import dpo
from reflogp.stages.train.losses.reference_free import sft


def dpop(pairs: PairLogps, *, beta: Positive = 0.3, dpop_lambda: NonNegative = 50.0) -> Tensor:
    """DPO-Positive: penalizes a chosen response that is less likely than under the reference.

    Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive":
    beta times (margin - `dpop_lambda` * max(0, -log-ratio of chosen)), in DPO's logistic loss. The
    defaults are the paper's.
    """
    fallen = torch.relu(-pairs.chosen_logratios)
    return -F.logsigmoid(beta * (pairs.margins - dpop_lambda * fallen))


def rpo(pairs: PairLogps, *, beta: Positive = 0.1, rpo_alpha: NonNegative = 1.0) -> Tensor:
    """DPO plus the mean negative log-likelihood per token of the chosen response.

    Pang et al. 2024, "Iterative Reasoning Preference Optimization". The paper's alpha, 1, weighs
    the DPO term; `rpo_alpha` weighs the likelihood, as in TRL. The mean is over each response's
    tokens, as in the paper.
    """
    return dpo(pairs, beta=beta) + rpo_alpha * sft(pairs)


def apo_zero(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, zero: raises chosen and lowers rejected, each against 0.

    D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions",
    equation 7. Use it if chosen responses are better than what the policy writes.
    """
    chosen = torch.sigmoid(-beta * pairs.chosen_logratios)
    return chosen + torch.sigmoid(beta * pairs.rejected_logratios)


def apo_down(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """Anchored Preference Optimization, down: lowers both responses, the rejected one further.

    D'Oosterlinck et al. 2024, equation 8. Use it if chosen responses are worse than what the
    policy writes.
    """
    return torch.sigmoid(beta * pairs.chosen_logratios) + torch.sigmoid(-beta * pairs.margins)


def nca(pairs: PairLogps, *, beta: Positive = 0.01) -> Tensor:
    """Noise Contrastive Alignment of a pair: raises the likelihood of chosen in absolute terms.

    Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", the
    form for pairs (section 4.1). beta is the paper's alpha; 0.01 is from the authors' recipe.
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    noise = 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))
    return -F.logsigmoid(chosen) - noise


def bco(pairs: PairLogps, *, beta: Positive = 0.01, batch_shift: bool = False) -> Tensor:
    """Binary Classifier Optimization of a pair: classifies each response as chosen or rejected.

    Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section
    4. The loss is an upper bound of DPO's for any shift of the rewards. The paper shifts them by a
    running mean of all rewards so far, which tightens the bound. Here the shift is 0, as in TRL's
    bco_pair, or the mean of the batch, because a running mean would restart with a resumed run.

    Args:
        pairs: log-probs, sums.
        beta: pull towards the reference.
        batch_shift: subtract the mean reward of all responses in the forward pass, without a
            gradient. Use at least 8 pairs per pass. With one pair, the result is twice the DPO
            loss at beta / 2, which does not judge each response by itself.
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    if batch_shift:
        shift = (chosen + rejected).detach().mean() / 2
        chosen, rejected = chosen - shift, rejected - shift
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo(pairs: PairLogps, *, beta: Positive = 0.001) -> Tensor:
    """Self-Play Preference Optimization, hard: pulls each log-ratio to a goal, +-1 / (2 beta).

    Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", equation 4.7
    with a winning probability of 1 or 0, which the paper estimates with a preference model.
    1 / beta is the paper's eta, 1000. The loss starts at 2 * (eta / 2)^2 = 500,000, so gradient
    clipping sets the pace. It is the sum of both squares, as in TRL; the authors' code halves it.
    """
    goal = 1 / (2 * beta)
    return (pairs.chosen_logratios - goal) ** 2 + (pairs.rejected_logratios + goal) ** 2
