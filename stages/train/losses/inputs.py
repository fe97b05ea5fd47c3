"""The inputs of the losses: log-probs of pairs, or of unpaired responses labelled good or bad."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class PairLogps(NamedTuple):
    """A batch of pairs. Log-probs are sums over response tokens, in nats: float64 [batch].

    Tokens of a response that the policy does not write, such as the results of tools, count
    neither in sums nor in lengths.

    Attributes:
        policy_chosen: log pi_theta(y_w|x).
        policy_rejected: log pi_theta(y_l|x).
        ref_chosen: log pi_ref(y_w|x).
        ref_rejected: log pi_ref(y_l|x).
        chosen_tokens: |y_w|, int64 [batch], at least 1.
        rejected_tokens: |y_l|, int64 [batch], at least 1.
        shared: the same over the first min(|y_w|, |y_l|) tokens of each response; None unless a
            loss needs `tokens`.
        chosen_log_squares: sum over y_w's tokens of log sum_v pi_theta(v | x, y_<t)^2, without a
            gradient; None unless WPO's weights need it.
        rejected_log_squares: the same for y_l.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    shared: "PairLogps | None" = None
    chosen_log_squares: Tensor | None = None
    rejected_log_squares: Tensor | None = None

    @classmethod
    def stacked(
        cls,
        policy: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shared: "PairLogps | None" = None,
    ) -> Self:
        """Pairs from tensors [2 * batch] that hold all chosen values, then all rejected ones."""
        (chosen, rejected), (ref_chosen, ref_rejected) = policy.chunk(2), reference.chunk(2)
        chosen_tokens, rejected_tokens = tokens.chunk(2)
        return cls(
            chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens, shared
        )

    @property
    def chosen_logratios(self) -> Tensor:
        """log pi_theta(y_w|x) - log pi_ref(y_w|x), float64 [batch]."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """log pi_theta(y_l|x) - log pi_ref(y_l|x), float64 [batch]."""
        return self.policy_rejected - self.ref_rejected

    @property
    def logratios(self) -> Tensor:
        """The log-ratios of all responses, float64 [2 * batch], those of the chosen ones first."""
        return torch.cat([self.chosen_logratios, self.rejected_logratios])

    @property
    def margins(self) -> Tensor:
        """Chosen minus rejected log-ratio, float64 [batch], which DPO increases."""
        return self.chosen_logratios - self.rejected_logratios

    def per_token(self) -> Self:
        """The same pairs, with means over each response's tokens instead of sums."""
        return self._replace(
            policy_chosen=self.policy_chosen / self.chosen_tokens,
            policy_rejected=self.policy_rejected / self.rejected_tokens,
            ref_chosen=self.ref_chosen / self.chosen_tokens,
            ref_rejected=self.ref_rejected / self.rejected_tokens,
        )


class UnpairedLogps(NamedTuple):
    """A batch of unpaired rows. Log-probs are sums over response tokens, in nats: float64 [batch].

    Attributes:
        policy: log pi_theta(y|x).
        reference: log pi_ref(y|x).
        tokens: |y|, int64 [batch], at least 1.
        desirable: bool [batch], True where the response is good.
        kl: float64 scalar, KTO's reference point (unpaired.kl_estimate), at least 0; 0 if no loss
            needs it.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor
    desirable: Tensor
    kl: Tensor

    @property
    def logratios(self) -> Tensor:
        """log pi_theta(y|x) - log pi_ref(y|x), float64 [batch]."""
        return self.policy - self.reference


AnyLogps = PairLogps | UnpairedLogps
