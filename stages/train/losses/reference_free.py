"""Losses of the policy's log-probs alone. They use only the tokens of a cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import NonNegative, Positive
from reflogp.stages.train.losses.inputs import PairLogps

# A mean log-prob of 0 has infinite odds. float32 cannot tell a probability of 1 - 1e-7 from 1.
_CERTAIN = -1e-7


def sft(pairs: PairLogps) -> Tensor:
    """Mean negative log-likelihood per token of the chosen response: -log pi(y_w|x) / |y_w|.

    Add it to another loss (`dpo=1,sft=0.2`) to keep the chosen response likely. Every response
    counts the same, whatever its length; in TRL every token of the batch does.
    """
    return -pairs.policy_chosen / pairs.chosen_tokens


def simpo(pairs: PairLogps, *, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Tensor:
    """SimPO: the reward is the mean log-prob per token, and the margin must exceed gamma.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    equation 6. The defaults are the paper's for Llama-3-Base. The paper uses beta from 2 to 2.5 and
    gamma from 0.3 to 1.6; its later models use beta 10. beta does not scale gamma: change both, and
    keep gamma / beta near 0.5, where the authors advise to start. TRL's default beta is DPO's, 0.1.

    CPO-SimPO (Xu et al., the authors of CPO) is `simpo=1,sft=0.05`, with beta 10 and gamma 5.4.
    """
    means = pairs.per_token()
    return -F.logsigmoid(beta * (means.policy_chosen - means.policy_rejected) - gamma)


def orpo(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """ORPO: fine-tuning on the chosen response plus beta times an odds-ratio term.

    Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations
    6 and 7; beta is the paper's lambda. odds = p / (1 - p), where p is the geometric mean of the
    probabilities of a response's tokens. The likelihood is that of the response alone, as in the
    paper. TRL counts the prompt's tokens too, and so does the authors' code by default.
    """
    means = pairs.per_token()
    log_odds_ratio = _log_odds(means.policy_chosen) - _log_odds(means.policy_rejected)
    return sft(pairs) - beta * F.logsigmoid(log_odds_ratio)


def cpo(pairs: PairLogps, *, beta: Positive = 0.1, cpo_alpha: NonNegative = 1.0) -> Tensor:
    """Contrastive Preference Optimization: DPO with a uniform reference, plus fine-tuning.

    Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance
    in Machine Translation", L_prefer + L_NLL. The paper sums the likelihood over tokens. The
    authors' code and TRL take a mean; here it is the mean over each response, not over the batch.
    """
    preference = -F.logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected))
    return preference + cpo_alpha * sft(pairs)


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p. expm1 keeps 1 - p exact for p close to 1."""
    logp = logp.clamp(max=_CERTAIN)
    return logp - torch.log(-torch.expm1(logp))
