"""Which pairs each optimizer step takes, and how they are shared out into forward passes.

The order depends on the seed and the epoch alone, and a step's pairs on nothing else than their
number: however many processes share the work, the steps are the same ones.
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
    """Positions of a data set in an order drawn anew in each epoch, in lists of `size`."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self._rows, self._size, self._seed, self._epoch = rows, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, whichever came before: a resumed run needs that."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._rows // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        # a generator of its own: training's random state is not touched
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator)
        for start in range(0, self._rows, self._size):
            yield order[start : start + self._size].tolist()


class EpochLoader(DataLoader[list[Row]]):
    """A DataLoader over ShuffledBatches that passes the epoch's number on."""

    batch_sampler: ShuffledBatches

    def set_epoch(self, epoch: int) -> None:
        """See ShuffledBatches."""
        self.batch_sampler.set_epoch(epoch)


class Share(NamedTuple, Generic[AnyRow]):
    """One forward pass of one process.

    Attributes:
        pairs: what goes through the policy.
        weight: of their mean in the mean over all pairs; 0 for a pass that only keeps step with
            the other processes.
    """

    pairs: Sequence[AnyRow]
    weight: float


def shares(
    pairs: Sequence[AnyRow],
    size: int,
    process: int = 0,
    processes: int = 1,
    *,
    even: bool = False,
) -> list[Share[AnyRow]]:
    """One process's forward passes over pairs that all processes know.

    Pairs of like length go together, which spares padding; and there are fewer long ones in a pass
    than short ones, so that the largest pass takes as little memory as it can, and processes wait
    little for each other. All processes have as many passes as the others.

    Args:
        pairs: of one optimizer step, or of an evaluation.
        size: pairs in a pass, on average.
        process: this one's number.
        processes: how many share the pairs.
        even: put `size` pairs in each pass, for losses that compare those of one.
    """
    ordered = sorted(pairs, key=lambda pair: pair.distinct_tokens, reverse=True)
    sizes = [size] * -(-len(pairs) // size) if even else _balanced(ordered, size)
    ends = [0, *accumulate(sizes)]
    groups = [ordered[start:end] for start, end in pairwise(ends)]
    found = [Share(group, len(group) / len(pairs)) for group in groups]
    found += [Share(groups[0], 0.0)] * (-len(groups) % processes)
    return found[process::processes]


def _balanced(ordered: Sequence[Row], size: int) -> list[int]:
    """Sizes of the passes, which are as many as with `size` pairs in each.

    No other way to cut the row of pairs, which are ordered by length, has fewer tokens in its
    largest pass, padding included.
    """
    lengths = [pair.distinct_tokens for pair in ordered]
    passes = -(-len(lengths) // size)
    limits = range(lengths[0], size * lengths[0] + 1)
    least = bisect_left(limits, True, key=lambda limit: len(_cut(lengths, limit)) <= passes)
    sizes = _cut(lengths, limits[least])
    while len(sizes) < passes:  # Trainer counts them, to know when a step is done
        most = sizes.index(max(sizes))
        sizes[most : most + 1] = [sizes[most] // 2, -(-sizes[most] // 2)]
    return sizes


def _cut(lengths: Sequence[int], limit: int) -> list[int]:
    """How many go into each pass, the longest first, if none may have more tokens than `limit`."""
    sizes: list[int] = []
    longest = 0
    for length in lengths:
        if not sizes or (sizes[-1] + 1) * longest > limit:
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return sizes
