"""Requests -> what to ask of an engine with a prefix cache, so that no log-prob is lost to it.

A cached token gives no log-prob, because its hidden state is gone. Responses of one prompt that
begin alike would so lose rows to the cache; here the beginning that they share is asked of the
first of them alone, together with the first token in which the others differ (the same row
predicts it). The others are asked only for what follows a token of their own, which no sibling can
have put into the cache. A request that is a copy of another, or differs in its last token only,
is not computed at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.precompute.score.engines.protocol import Ids, Logps, Request

Numbers = NDArray[np.int64]


class Question(NamedTuple):
    """One sequence for the engine: wanted is the log-prob of `targets[i]` after row `rows[i]`."""

    token_ids: Ids
    rows: Ids
    """Positions in the sequence, ascending; one may stand there more than once."""
    targets: Ids


class Questions(NamedTuple):
    """Questions, and where each request's log-probs stand in the answers, joined."""

    questions: list[Question]
    places: list[Numbers]

    def collect(self, answers: Sequence[Logps]) -> list[Logps]:
        """The log-probs of each request, from the answer to each question."""
        joined = np.concatenate([np.zeros(0, np.float32), *answers])
        return [joined[place] for place in self.places]


def ask_once(requests: Sequence[Request]) -> Questions:
    """Questions that together give every log-prob that `requests` want, each asked once.

    They are sorted by prompt, then by response: what begins alike stands together, so the engine's
    cache still holds it, and a prompt comes before those that continue it.
    """
    order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
    walk = _Walk()
    pairs = dict(zip(order, [walk.add(requests[i]) for i in order], strict=True))
    questions, place = walk.questions()
    return Questions(questions, [place[pairs[i]] for i in range(len(requests))])


class _Walk:
    """Takes sorted requests and gives every (row, target) that is wanted to one of them.

    No earlier response begins more like a sorted response than its predecessor does. So it is
    enough to remember, for the predecessor, whose question each of its rows belongs to.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        # Of the last request: the number of the pair that gives each token; and the owner of each
        # row, from the one that predicts the first token to that of the last token itself.
        self._pairs: Numbers = np.zeros(0, np.int64)
        self._owners: Numbers = np.zeros(0, np.int64)
        self._count = 0
        self._parts: list[tuple[Numbers, Numbers, Ids]] = []

    def add(self, request: Request) -> Numbers:
        """The number of the pair that gives each token of `request`."""
        # -1: not even the row that predicts the first token is shared
        alike = _alike(self._requests[-1], request) if self._requests else -1
        kept = max(alike, 0)
        own = np.full(len(request.response_ids) - alike, len(self._requests))
        self._owners = np.concatenate([self._owners[: alike + 1], own])
        new = np.arange(kept, len(request.response_ids))
        rows = new + (len(request.prompt_ids) - 1)
        self._parts.append((self._owners[new], rows, request.response_ids[kept:]))
        self._pairs = np.concatenate([self._pairs[:kept], self._count + np.arange(len(new))])
        self._count += len(new)
        self._requests.append(request)
        return self._pairs

    def questions(self) -> tuple[list[Question], Numbers]:
        """The questions, and the place of each pair in their answers, joined."""
        if not self._parts:
            return [], np.zeros(0, np.int64)
        owners, rows, targets = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((rows, owners))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        asking, starts = np.unique(owners[order], return_index=True)
        split = [np.split(values[order].astype(np.int32), starts[1:]) for values in (rows, targets)]
        return [
            Question(self._requests[owner].token_ids, *asked)
            for owner, *asked in zip(asking, *split, strict=True)
        ], place


def _sort_key(request: Request) -> tuple[bytes, bytes]:
    """Big-endian bytes sort as the token ids do, a beginning before what it begins."""
    return request.prompt_ids.astype(">i4").tobytes(), request.response_ids.astype(">i4").tobytes()


def _alike(one: Request, other: Request) -> int:
    """How many tokens the responses begin with alike; -1 if the prompts differ."""
    if not np.array_equal(one.prompt_ids, other.prompt_ids):
        return -1
    return common_length(one.response_ids, other.response_ids)


def common_length(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
