"""Pairs with log-probs of each token, from which everything that a loss can need is summed."""

import torch
from torch import Tensor

from reflogp.stages.train.losses.inputs import PairLogps


def pairs_of(
    policy: Tensor,
    reference: Tensor,
    lengths: Tensor,
    shared: bool = True,
    log_squares: Tensor | None = None,
) -> PairLogps:
    """PairLogps of [2b, tokens] log-probs, chosen first, of which `lengths` [2b] are real."""

    def sums(counts):
        real = torch.arange(policy.shape[1]) < counts[:, None]
        return PairLogps.stacked((policy * real).sum(1), (reference * real).sum(1), counts)

    least = torch.minimum(*lengths.chunk(2)).repeat(2)
    whole = sums(lengths)._replace(shared=sums(least) if shared else None)
    if log_squares is None:
        return whole
    real = torch.arange(policy.shape[1]) < lengths[:, None]
    chosen, rejected = (log_squares * real).sum(1).chunk(2)
    return whole._replace(chosen_log_squares=chosen, rejected_log_squares=rejected)


def random_pairs(
    batch: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of policy and reference, a few nats apart, and lengths from 3 to 9."""
    generator = torch.Generator().manual_seed(seed)
    policy = -torch.rand(2 * batch, 9, generator=generator, dtype=dtype) * 3
    reference = -torch.rand(2 * batch, 9, generator=generator, dtype=dtype) * 3
    return policy, reference, torch.randint(3, 10, (2 * batch,), generator=generator)
