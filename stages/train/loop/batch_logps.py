"""A batch's log-probs per token, from policy and cache -> the input of a loss."""

import torch
from torch import Tensor

from reflogp.stages.forward.response_logps import SUM_DTYPE, sum_by_row
from reflogp.stages.train.data.batches import Batch
from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps


def pair_logps(logps: Tensor, batch: Batch, log_squares: Tensor | None = None) -> PairLogps:
    """Sum log-probs over responses, and over shared lengths if the batch has that reference.

    Args:
        logps: float32 [n], of the batch's response tokens in order, in nats.
        batch: of b pairs.
        log_squares: float32 [n], log sum_v pi_theta(v | x, y_<t)^2 of each token, for WPO.

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


def unpaired_logps(logps: Tensor, batch: Batch) -> UnpairedLogps:
    """Sum log-probs over responses.

    Args:
        logps: float32 [n], of the batch's response tokens in order, in nats.
        batch: of b unpaired rows.

    Returns:
        Tensors [b]. The reference point is the batch's, or 0 if it has none.
    """
    owners, reference, kl = batch["owners"], batch["ref_logps"], batch.get("kl")
    return UnpairedLogps(
        policy=sum_by_row(logps, owners, len(reference)),
        reference=reference,
        tokens=torch.bincount(owners, minlength=len(reference)),
        desirable=batch["desirable"],
        kl=reference.new_zeros((), dtype=SUM_DTYPE) if kl is None else kl,
    )
