"""What an engine must do: log-probs of given responses after given prompts, nothing else."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Logps = NDArray[np.float32]


class Request(NamedTuple):
    """One sequence to score. Both parts hold at least one token id."""

    prompt_ids: list[int]
    response_ids: list[int]


class Scorer(Protocol):
    """An engine that is loaded and ready.

    Implementations: vllm_prompt_logprobs.py, transformers.py.
    """

    device: str

    def score(self, requests: Sequence[Request]) -> list[Logps]:
        """Score `requests`, in their order.

        Returns:
            For each request a float32 array, as long as its `response_ids`, of
            log pi_ref(y_t | x, y_<t) in nats.
        """
        ...

    def close(self) -> None:
        """Give the engine's memory and processes back."""
        ...
