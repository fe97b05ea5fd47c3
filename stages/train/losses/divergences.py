"""f-DPO: DPO with a divergence other than the reverse KL.

Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
Divergence Constraints": the loss is -log sigmoid(beta * (f'(u_w) - f'(u_l))) with u = pi_theta /
pi_ref and f' the derivative of the divergence's generator. The reverse KL has f'(u) = log u + 1,
which gives plain DPO. Constants cancel in the difference and are omitted.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reflogp.stages.train.losses.arguments import InnerFraction, Positive
from reflogp.stages.train.losses.inputs import PairLogps

# Above this, exp continues as its tangent: it still grows, and never overflows.
_TANGENT_FROM = 30.0


def fdpo_forward_kl(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the forward KL, f'(u) = -1/u: covers the modes of the reference."""
    chosen, rejected = -_exp(-pairs.chosen_logratios), -_exp(-pairs.rejected_logratios)
    return -F.logsigmoid(beta * (chosen - rejected))


def fdpo_js(pairs: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the Jensen-Shannon divergence, f'(u) = log(2u / (1 + u)), at most log 2."""
    chosen, rejected = F.logsigmoid(pairs.chosen_logratios), F.logsigmoid(pairs.rejected_logratios)
    return -F.logsigmoid(beta * (chosen - rejected))


def fdpo_alpha(pairs: PairLogps, *, beta: Positive = 0.1, alpha: InnerFraction = 0.5) -> Tensor:
    """f-DPO with an alpha-divergence, f'(u) = (1 - u^-alpha) / alpha.

    Args:
        pairs: log-probs, sums.
        beta: pull towards the reference.
        alpha: near 0 it is the reverse KL, near 1 the forward KL. TRL's coefficient is 1 - alpha.
    """
    chosen = -_exp(-alpha * pairs.chosen_logratios) / alpha
    rejected = -_exp(-alpha * pairs.rejected_logratios) / alpha
    return -F.logsigmoid(beta * (chosen - rejected))


def _exp(x: Tensor) -> Tensor:
    beyond = torch.relu(x - _TANGENT_FROM)
    return torch.exp(x.clamp(max=_TANGENT_FROM)) + math.exp(_TANGENT_FROM) * beyond
