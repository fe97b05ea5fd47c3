"""Preference losses: pure functions of log-probs. No model, no batch, no state."""

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from stages.train.config import LossName


class PreferenceLoss(NamedTuple):
    """What a loss gives for each pair. All [batch].

    Attributes:
        loss: what is minimized, before the mean over the batch.
        chosen_rewards: beta * log(pi_theta / pi_ref) of the chosen response; carries no gradient.
        rejected_rewards: the same of the rejected response.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class LossFunction(Protocol):
    """A loss over pairs: all log-probs float [batch], in nats, sums over response tokens."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        *,
        beta: float,
    ) -> PreferenceLoss:
        """The loss and the implicit rewards of each pair."""
        ...


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Direct Preference Optimization: -log sigmoid(beta * margin).

    Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
    Model", equation 7. The gradient of a pair is weighted by sigmoid(-beta * margin): a pair that
    is ordered rightly already teaches little.

    Args:
        policy_chosen_logps: log pi_theta(y_w|x), float [batch], in nats.
        policy_rejected_logps: log pi_theta(y_l|x), float [batch].
        ref_chosen_logps: log pi_ref(y_w|x), float [batch].
        ref_rejected_logps: log pi_ref(y_l|x), float [batch].
        beta: strength of the pull towards the reference; 0.01 to 0.5, usually 0.1.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    margins = chosen_logratios - rejected_logratios
    return PreferenceLoss(
        loss=-F.logsigmoid(beta * margins),
        chosen_rewards=beta * chosen_logratios.detach(),
        rejected_rewards=beta * rejected_logratios.detach(),
    )


LOSSES: dict[LossName, LossFunction] = {"dpo": dpo}
