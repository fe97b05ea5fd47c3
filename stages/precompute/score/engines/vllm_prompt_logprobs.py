"""Scores with vLLM's own `prompt_logprobs`, which works for every model that vLLM runs.

The results are exact, but vLLM also computes the head and a rank over the vocabulary for every
prompt token, and cannot reuse a shared prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines import vllm_engine, vllm_lora
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen


class VllmPromptLogprobsScorer:
    """A Scorer over vllm.LLM."""

    def __init__(
        self,
        model: Checkpoint,
        *,
        max_length: int,
        settings: dict[str, Any],
        why: str = "asked for",
    ) -> None:
        """Start the engine for sequences of up to `max_length` tokens.

        Args:
            model: what to score with.
            max_length: longest prompt + response, in tokens.
            settings: further arguments of vllm.LLM, which override those set here.
            why: the reason not to use the pooling model.

        Raises:
            ReflogpError: the engine does not start.
        """
        self.method = f"vLLM prompt_logprobs ({why})"
        self._model = model
        self.device = vllm_engine.device_type()
        arguments: dict[str, Any] = {
            "model": str(model.folder),
            "dtype": model.dtype,
            "trust_remote_code": model.trusted,
            # vLLM needs room for one sampled token, which is discarded
            "max_model_len": max_length + 1,
            # a cached prompt has no hidden states, so it gives no log-probs
            "enable_prefix_caching": False,
        }
        self._engine, self._log = vllm_engine.start_engine(arguments | settings, model.adapter)
        self._lora = vllm_lora.request(model.adapter)
        from vllm import SamplingParams

        # set in the constructor: set later, prompt_logprobs would leave the prefix cache on
        self._sampling = SamplingParams(
            prompt_logprobs=0, max_tokens=1, temperature=1.0, detokenize=False, flat_logprobs=True
        )

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """See Scorer.score."""
        each = sum(request.length for request in requests) / max(len(requests), 1)
        prompts = [{"prompt_token_ids": request.token_ids.tolist()} for request in requests]
        with vllm_engine.death_explained(self._engine, self._log):
            outputs = self._engine.generate(
                prompts,
                self._sampling,
                lora_request=self._lora,
                use_tqdm=vllm_engine.counting(lambda: advance(each)),
            )
        return [
            _response_part(output.prompt_logprobs, request)
            for output, request in zip(outputs, requests, strict=True)
        ]

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """See Scorer.rescore."""
        return vllm_engine.rescore(self._model, requests)

    def close(self) -> None:
        """See Scorer.close."""
        vllm_engine.stop_engine(self._engine)
        del self._engine


def _response_part(flat: Any, request: Request) -> Logps:
    """The wanted log-probs from vLLM's flat lists, in which position t starts at `start[t]`.

    The first entry of a position is its own token; entries of a top-k would follow. If the tokens
    are not those of the request, the result is empty, which fails the check of its length.
    """
    first = len(request.prompt_ids)
    places = flat.start_indices[first:]
    tokens = [flat.token_ids[place] for place in places]
    if tokens != request.response_ids.tolist():
        return np.zeros(0, np.float32)
    return np.array([flat.logprobs[places[i]] for i in request.wanted], dtype=np.float32)
