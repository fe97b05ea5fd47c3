"""Requests -> questions to an engine with a prefix cache, without losing log-probs to the cache.

A cached token has no hidden state, so it gives no log-prob. If responses to a prompt share their
first tokens, the cache would swallow these rows. Here only the first response is asked for the
shared tokens, and for the first token in which the others differ, which the same row predicts. The
others are asked only for the tokens after their first difference: no sibling can have put these
rows into the cache. A request that equals another one, or differs only in its last token, is not
computed.

A response can have tokens that are not to be scored. If another response that begins alike wants
such a token, the first response is asked for it all the same, because it computes the row.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reflogp.stages.precompute.score.engines.protocol import Ids, Logps, Request

Numbers = NDArray[np.int64]
_NOBODY = -1  # instead of the number of a pair: no request has wanted the token yet


class Question(NamedTuple):
    """One sequence for the engine, which returns the log-prob of `targets[i]` after `rows[i]`."""

    token_ids: list[int]
    rows: Ids
    """Positions in the sequence, ascending; one can occur more than once."""
    targets: Ids


class Questions(NamedTuple):
    """Questions, and the positions of each request's log-probs in the concatenated answers."""

    questions: list[Question]
    places: list[Numbers]

    def collect(self, answers: Sequence[Logps]) -> list[Logps]:
        """The log-probs of each request, from the answers to the questions."""
        joined = np.concatenate([np.zeros(0, np.float32), *answers])
        return [joined[place] for place in self.places]


class Requests(list[Request]):
    """Requests whose questions can be made before the engine is free, which takes a while."""

    @cached_property
    def questions(self) -> Questions:
        """The questions to an engine with a prefix cache."""
        return ask_once(self)


def ask_once(requests: Sequence[Request]) -> Questions:
    """Questions that give every log-prob of `requests`, each exactly once.

    They are sorted by prompt, then by response. Sequences that share a beginning are neighbours, so
    the engine's cache still has it, and a prompt comes before prompts that continue it.
    """
    order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
    walk = _Walk()
    pairs = dict(zip(order, [walk.add(requests[i]) for i in order], strict=True))
    questions, place = walk.questions()
    return Questions(questions, [place[pairs[i]] for i in range(len(requests))])


class _Walk:
    """Takes sorted requests, and assigns each (row, target) pair to the question of one request.

    Among earlier responses, the predecessor shares the longest beginning. It is therefore enough to
    remember, for each row of the predecessor, the question that it belongs to.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        # For the last request: the number of the pair that gives each token, if anybody wants it,
        # and the owner of each row, from that of the first token to the row of the last token.
        self._pairs: Numbers = np.zeros(0, np.int64)
        self._owners: Numbers = np.zeros(0, np.int64)
        self._count = 0
        self._parts: list[tuple[Numbers, Numbers, Ids]] = []

    def add(self, request: Request) -> Numbers:
        """The number of the pair that gives each token that `request` wants."""
        # -1: not even the row that predicts the first token is shared
        alike = _alike(self._requests[-1], request) if self._requests else -1
        kept = max(alike, 0)
        own = np.full(len(request.response_ids) - alike, len(self._requests))
        self._owners = np.concatenate([self._owners[: alike + 1], own])
        unknown = np.full(len(request.response_ids) - kept, _NOBODY)
        self._pairs = np.concatenate([self._pairs[:kept], unknown])
        wanted = request.wanted
        new = wanted[self._pairs[wanted] == _NOBODY]
        rows = new + (len(request.prompt_ids) - 1)
        self._parts.append((self._owners[new], rows, request.response_ids[new]))
        self._pairs[new] = self._count + np.arange(len(new))
        self._count += len(new)
        self._requests.append(request)
        return self._pairs[wanted]

    def questions(self) -> tuple[list[Question], Numbers]:
        """The questions, and the position of each pair in their concatenated answers."""
        if not self._count:
            return [], np.zeros(0, np.int64)
        owners, rows, targets = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((rows, owners))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        asking, starts = np.unique(owners[order], return_index=True)
        split = [np.split(values[order].astype(np.int32), starts[1:]) for values in (rows, targets)]
        return [
            Question(self._requests[owner].token_ids.tolist(), *asked)
            for owner, *asked in zip(asking, *split, strict=True)
        ], place


def _sort_key(request: Request) -> tuple[bytes, bytes]:
    """Big-endian bytes sort like the token ids, with a prefix before its continuations."""
    return request.prompt_ids.astype(">i4").tobytes(), request.response_ids.astype(">i4").tobytes()


def _alike(one: Request, other: Request) -> int:
    """The length of the common prefix of the responses; -1 if the prompts differ."""
    if not np.array_equal(one.prompt_ids, other.prompt_ids):
        return -1
    return common_length(one.response_ids, other.response_ids)


def common_length(one: Ids, other: Ids) -> int:
    """The length of the common prefix."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
