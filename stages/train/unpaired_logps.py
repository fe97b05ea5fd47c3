"""The policy's log-probs of a batch's tokens, and the cache's -> what unpaired losses take."""

import torch
from torch import Tensor

from stages.response_logps import SUM_DTYPE, sum_by_row
from stages.train.batches import Batch
from stages.train.losses.inputs import UnpairedLogps


def unpaired_logps(logps: Tensor, batch: Batch) -> UnpairedLogps:
    """Sum log-probs over responses.

    Args:
        logps: float32 [n], of the response tokens of the batch, in its order, in nats.
        batch: of b unpaired rows.

    Returns:
        Tensors [b]; the reference point is that of the batch, or 0 if it has none.
    """
    owners, reference, kl = batch["owners"], batch["ref_logps"], batch.get("kl")
    return UnpairedLogps(
        policy=sum_by_row(logps, owners, len(reference)),
        reference=reference,
        tokens=torch.bincount(owners, minlength=len(reference)),
        desirable=batch["desirable"],
        kl=reference.new_zeros((), dtype=SUM_DTYPE) if kl is None else kl,
    )
