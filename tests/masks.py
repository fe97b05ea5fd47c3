"""Masks of a response, for every engine and loss: wherever tokens of context can stand."""

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.precompute.score.engines.protocol import Request


def masks_of(length: int) -> list[NDArray[np.bool_]]:
    """Context in the beginning, at the end, at every other token, in the middle, almost
    everywhere, and everywhere.
    """
    at = np.arange(length)
    middle = (at >= length // 3) & (at < 2 * length // 3)
    return [at > 0, at < length - 1, at % 2 == 0, at % 2 == 1, ~middle, at == length // 2, at < 0]


def masked(requests: list[Request], first: int = 0) -> list[Request]:
    """The same sequences with masks, of every kind in turn from number `first` on."""
    kinds = [masks_of(len(request.response_ids)) for request in requests]
    return [
        request._replace(mask=masks[number % len(masks)])
        for number, (request, masks) in enumerate(zip(requests, kinds, strict=True), first)
    ]
