"""Requests -> what to ask of an engine with a prefix cache, so that nothing is computed twice.

A cached token gives no log-prob, because its hidden state is gone. Responses of one prompt that
begin alike would so lose rows to the cache; here the beginning that they share is asked of the
first of them alone, together with the first token in which the others differ (it is predicted
from the same row). The others are asked only for what follows a token of their own, which no
sibling can have put into the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.precompute.scorers.protocol import Logps, Request

Numbers = NDArray[np.int32]


class Question(NamedTuple):
    """One sequence for the engine: wanted is the log-prob of `targets[i]` after row `rows[i]`."""

    ids: list[int]
    rows: Numbers
    targets: Numbers


class Plan(NamedTuple):
    """Questions, and where the log-probs of each request stand in their joined answers."""

    questions: list[Question]
    places: list[NDArray[np.int64]]

    def collect(self, answers: Sequence[Logps]) -> list[Logps]:
        """The log-probs of each request, from one answer a question."""
        joined = np.concatenate([np.zeros(0, np.float32), *answers])
        return [joined[place] for place in self.places]


def plan(requests: Sequence[Request]) -> Plan:
    """Questions that together give every log-prob that `requests` want, each asked once.

    They are sorted by prompt, then by response: what begins alike stands together, so the engine's
    cache still holds it, and a prompt comes before those that continue it.
    """
    order = sorted(range(len(requests)), key=requests.__getitem__)
    sharer = _Sharer()
    places = {i: sharer.add(requests[i]) for i in order}
    questions, position = sharer.questions([requests[i] for i in order])
    return Plan(questions, [position[places[i]] for i in range(len(requests))])


class _Sharer:
    """Walks sorted requests and gives each (row, target) that is wanted to one of them.

    Of the responses to one prompt, sorted, none begins more like a response than its predecessor.
    So it is enough to remember, for the predecessor, whose question each of its rows belongs to.
    """

    def __init__(self) -> None:
        self._previous = Request([], [])
        # Of the previous request: the pair of each token, the owner of each row from the one that
        # predicts the first token to that of the last token, which predicts nothing of its own.
        self._pairs = np.zeros(0, np.int64)
        self._owners = np.zeros(0, np.int64)
        self._added = 0
        self._count = 0
        self._owner_parts: list[NDArray[np.int64]] = []
        self._row_parts: list[NDArray[np.int64]] = []
        self._target_parts: list[NDArray[np.int64]] = []

    def add(self, request: Request) -> NDArray[np.int64]:
        """The pair that gives each token of `request`, numbered in the order of their making."""
        prompt, response = request
        alike = -1  # not even the row that predicts the first token is shared
        if prompt == self._previous.prompt_ids:
            alike = _alike(response, self._previous.response_ids)
        kept_rows, kept_tokens = alike + 1, max(alike, 0)
        new = np.arange(kept_tokens, len(response))
        own = np.full(len(response) + 1 - kept_rows, self._added)
        self._owners = np.concatenate([self._owners[:kept_rows], own])
        self._pairs = np.concatenate(
            [self._pairs[:kept_tokens], self._count + np.arange(len(new), dtype=np.int64)]
        )
        self._owner_parts.append(self._owners[new])
        self._row_parts.append(len(prompt) - 1 + new)
        self._target_parts.append(np.array(response[kept_tokens:], np.int64))
        self._count += len(new)
        self._added += 1
        self._previous = request
        return self._pairs

    def questions(self, requests: Sequence[Request]) -> tuple[list[Question], NDArray[np.int64]]:
        """The questions, and the place of each pair in their joined answers.

        Args:
            requests: those that were added, in that order.
        """
        if not self._count:
            return [], np.zeros(0, np.int64)
        owners, rows, targets = (
            np.concatenate(parts)
            for parts in (self._owner_parts, self._row_parts, self._target_parts)
        )
        order = np.lexsort((rows, owners))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        asking, first = np.unique(owners[order], return_index=True)
        rows_of = np.split(rows[order].astype(np.int32), first[1:])
        targets_of = np.split(targets[order].astype(np.int32), first[1:])
        questions = [
            Question(requests[owner].prompt_ids + requests[owner].response_ids, its_rows, wanted)
            for owner, its_rows, wanted in zip(asking, rows_of, targets_of, strict=True)
        ]
        return questions, place


def _alike(a: list[int], b: list[int]) -> int:
    """How many tokens `a` and `b` begin with alike."""
    for count, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return count
    return min(len(a), len(b))
