"""Decides which pairs each optimizer step uses, and splits them into forward passes.

The order depends only on the seed and the epoch, and a step takes the next pairs in that order. The
steps are therefore the same for any number of processes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from reflogp.stages.train.data.cached_rows import Row

AnyRow = TypeVar("AnyRow", bound=Row)


class ShuffledBatches(Sampler[list[int]]):
    """Positions of a data set in lists of `size`, shuffled again in each epoch."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self._rows, self._size, self._seed, self._epoch = rows, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch. A resumed run starts in the middle of the sequence."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._rows // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        # its own generator, which leaves the random state of training alone
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator)
        for start in range(0, self._rows, self._size):
            yield order[start : start + self._size].tolist()


class EpochLoader(DataLoader[list[Row]]):
    """A DataLoader over ShuffledBatches that passes on the epoch number."""

    batch_sampler: ShuffledBatches

    def set_epoch(self, epoch: int) -> None:
        """See ShuffledBatches."""
        self.batch_sampler.set_epoch(epoch)


class Pass(NamedTuple, Generic[AnyRow]):
    """One forward pass of one process.

    Attributes:
        pairs: the rows that go through the policy.
        fraction: share of these pairs in all pairs of the step, which weights their mean; 0 for a
            pass that only fills up the number of passes of this process.
    """

    pairs: Sequence[AnyRow]
    fraction: float


def passes(
    pairs: Sequence[AnyRow],
    size: int,
    process: int = 0,
    processes: int = 1,
    *,
    even: bool = False,
) -> list[Pass[AnyRow]]:
    """One process's forward passes over pairs that all processes have.

    A pass has pairs of similar length, which saves padding, and fewer pairs if they are long. The
    largest pass then needs as little memory as possible, and processes wait little for each other.
    All processes get the same number of passes.

    Args:
        pairs: of one optimizer step, or of an evaluation.
        size: pairs per pass, on average.
        process: the number of this process.
        processes: how many processes share the pairs.
        even: put `size` pairs in each pass, for losses that compare the pairs of a pass.
    """
    ordered = sorted(pairs, key=lambda pair: pair.distinct_tokens, reverse=True)
    sizes = [size] * -(-len(pairs) // size) if even else _balanced(ordered, size)
    ends = [0, *accumulate(sizes)]
    groups = [ordered[start:end] for start, end in pairwise(ends)]
    found = [Pass(group, len(group) / len(pairs)) for group in groups]
    found += [Pass(groups[0], 0.0)] * (-len(groups) % processes)
    return found[process::processes]


def _balanced(ordered: Sequence[Row], size: int) -> list[int]:
    """Sizes of the passes. Their number is the same as with `size` pairs in each.

    The pairs are ordered by length. No other way to cut this sequence has fewer tokens in its
    largest pass, padding included.
    """
    lengths = [pair.distinct_tokens for pair in ordered]
    number = -(-len(lengths) // size)
    limits = range(lengths[0], size * lengths[0] + 1)
    least = bisect_left(limits, True, key=lambda limit: len(_cut(lengths, limit)) <= number)
    sizes = _cut(lengths, limits[least])
    while len(sizes) < number:  # Trainer counts the passes to know when a step is complete
        most = sizes.index(max(sizes))
        sizes[most : most + 1] = [sizes[most] // 2, -(-sizes[most] // 2)]
    return sizes


def _cut(lengths: Sequence[int], limit: int) -> list[int]:
    """Sizes of the passes, longest pairs first, if no pass may exceed `limit` tokens."""
    sizes: list[int] = []
    longest = 0
    for length in lengths:
        if not sizes or (sizes[-1] + 1) * longest > limit:
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return sizes
