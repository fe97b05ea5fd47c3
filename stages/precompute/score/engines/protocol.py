"""What an engine must do: log-probs of given responses after given prompts, nothing else."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Logps = NDArray[np.float32]


class Request(NamedTuple):
    """One sequence to score. Both parts are int32 [n] and hold at least one token id."""

    prompt_ids: Ids
    response_ids: Ids

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def token_ids(self) -> Ids:
        """The whole sequence, int32 [length]."""
        return np.concatenate([self.prompt_ids, self.response_ids])


class Scorer(Protocol):
    """An engine that is loaded and ready.

    Implementations: vllm_pooler.py, vllm_prompt_logprobs.py, transformers.py.
    """

    device: str
    """Kind of device that it runs on: cpu, cuda, ..."""
    method: str
    """How it gets log-probs, in a few words, for people and for the manifest."""

    def score(self, requests: Sequence[Request]) -> list[Logps]:
        """Score `requests`, in their order.

        Returns:
            For each request a float32 array, as long as its `response_ids`, of
            log pi_ref(y_t | x, y_<t) in nats.
        """
        ...

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """Score again, as plainly as can be, a few requests whose log-probs cannot be right.

        Each is alone in a transformers forward in the engine's own dtype: no neighbour, no padding,
        no cache and no kernel of vLLM's can be at fault then. The dtype stays, because what
        overflows in it would do so in training too.

        Returns:
            As `score` does.

        Raises:
            ReflogpError: the model cannot be loaded a second time, or the forward fails.
        """
        ...

    def close(self) -> None:
        """Give the engine's memory and processes back."""
        ...
