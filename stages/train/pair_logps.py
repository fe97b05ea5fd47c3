"""The policy's log-probs of a batch's tokens, and the cache's -> what losses over pairs take."""

import torch
from torch import Tensor

from stages.response_logps import sum_by_row
from stages.train.batches import Batch
from stages.train.losses.inputs import PairLogps


def pair_logps(logps: Tensor, batch: Batch, log_squares: Tensor | None = None) -> PairLogps:
    """Sum log-probs over responses; over the shared lengths too if the batch has that reference.

    Args:
        logps: float32 [n], of the response tokens of the batch, in its order, in nats.
        batch: of b pairs.
        log_squares: float32 [n], log sum_v pi_theta(v | x, y_<t)^2 of each, for WPO.

    Returns:
        Tensors [b].
    """
    owners, reference = batch["owners"], batch["ref_logps"]
    tokens = torch.bincount(owners, minlength=len(reference))
    sums = PairLogps.stacked(sum_by_row(logps, owners, len(reference)), reference, tokens)
    if log_squares is not None:
        chosen, rejected = sum_by_row(log_squares, owners, len(reference)).chunk(2)
        sums = sums._replace(chosen_log_squares=chosen, rejected_log_squares=rejected)
    if "ref_shared_logps" not in batch:
        return sums
    shared = torch.minimum(sums.chosen_tokens, sums.rejected_tokens).repeat(2)
    first = tokens.cumsum(0) - tokens
    within = torch.arange(len(owners), device=owners.device) - first[owners] < shared[owners]
    policy = sum_by_row(logps[within], owners[within], len(reference))
    return sums._replace(shared=PairLogps.stacked(policy, batch["ref_shared_logps"], shared))
