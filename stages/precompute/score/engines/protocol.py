"""The interface of an engine: log-probs of given tokens of responses after given prompts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Logps = NDArray[np.float32]


class Request(NamedTuple):
    """One sequence to score.

    Attributes:
        prompt_ids, response_ids: int32 [n], with at least one token.
        mask: the tokens of the response to score, bool [tokens of the response]; None: all of them.
            The others are context, such as the result of a tool.
    """

    prompt_ids: Ids
    response_ids: Ids
    mask: NDArray[np.bool_] | None = None

    @property
    def wanted(self) -> NDArray[np.int64]:
        """Positions in the response of the tokens to score, ascending."""
        return np.arange(len(self.response_ids)) if self.mask is None else self.mask.nonzero()[0]

    @property
    def scored(self) -> int:
        """Number of tokens to score. It can be 0."""
        return len(self.response_ids) if self.mask is None else int(self.mask.sum())

    @property
    def length(self) -> int:
        """Number of tokens in the sequence."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def token_ids(self) -> Ids:
        """The whole sequence, int32 [length]."""
        return np.concatenate([self.prompt_ids, self.response_ids])


def unseen(_: float) -> None:
    """Show no progress."""


class Scorer(Protocol):
    """An engine with a loaded model.

    Implementations: vllm_pooler.py, vllm_prompt_logprobs.py, transformers.py.
    """

    device: str
    """Type of the device: cpu, cuda, ..."""
    method: str
    """How the engine scores, in a few words, for people and for the manifest."""

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """Score `requests`, at best a whole shard: between two calls the engine has nothing to do.

        Args:
            requests: what to score.
            advance: called now and then with the number of sequence tokens since the last call;
                together all of them.

        Returns:
            log pi_ref(y_t | x, y_<t) in nats for each request, in order: float32
            [request.scored], of the tokens to score only.
        """
        ...

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """Score a few requests with impossible log-probs again, in the simplest way.

        Each one runs alone in a transformers forward pass in the engine's dtype, which rules out
        faults of neighbours, padding, caches and vLLM's kernels. The dtype stays, because a value
        that overflows in it would do so in training too.

        Returns:
            The same as `score`.

        Raises:
            ReflogpError: the model cannot be loaded a second time, or the forward pass fails.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory and end its processes."""
        ...
