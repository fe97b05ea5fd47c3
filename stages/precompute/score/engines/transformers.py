"""Scores with transformers. It runs wherever torch does, and the vLLM engines are checked with it.

Requests are sorted by length and batched up to a token budget, which leaves almost no padding. The
head runs only on the tokens to score, in chunks, so the memory for logits does not grow with the
budget.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.forward.response_logps import predicting, response_logps
from reflogp.stages.model.adapter import load_adapter
from reflogp.stages.model.causal_lm import CANNOT_RUN, load_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import cause
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen


class TransformersScorer:
    """A Scorer over AutoModelForCausalLM.

    A prompt is computed again for each of its responses. Computing it once, like vLLM's prefix
    cache, would save a third of HH-RLHF's tokens, but positions, masks and caches differ between
    architectures, and this engine is the plain forward pass that the others are compared with.
    """

    def __init__(
        self,
        model: Checkpoint,
        *,
        batch_tokens: int = 4096,
        device: str | None = None,
        eager: bool = False,
    ) -> None:
        """Load the model.

        Args:
            model: folder of the checkpoint.
            dtype: dtype of the weights and the forward pass.
            batch_tokens: most tokens in a batch, padding included.
            device: default: a GPU if there is one, else the CPU.
            adapter: folder of a LoRA adapter on top of the model, in float32.
            eager: use attention without a fused kernel, which is slower but follows the definition.

        Raises:
            InputError: the model is not a causal language model, or not complete.
        """
        self.method = "transformers forward, response tokens only"
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_tokens = batch_tokens
        self._folder = model.folder
        self._model = load_causal_lm(
            model.folder, getattr(torch, model.dtype), trusted=model.trusted, eager=eager
        )
        if model.adapter is not None:
            self._model = load_adapter(self._model, model.adapter)
        self._model.to(self.device).eval()
        self._embeddings = self._model.get_input_embeddings().weight.shape[0]

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """See Scorer.score. A sequence with a token that has no embedding gets NaN.

        Raises:
            ReflogpError: the model needs inputs other than text tokens.
        """
        found = [np.full(request.scored, np.nan, np.float32) for request in requests]
        left = sum(request.length for request in requests)
        for batch in self._batches(requests):
            try:
                scores = self._score_batch([requests[i] for i in batch])
            except RuntimeError:  # a device failed or is out of memory
                raise
            except CANNOT_RUN as error:
                raise ReflogpError(
                    f"{self._folder}: transformers cannot run this {type(self._model).__name__}: "
                    f"{cause(error)}"
                ) from error
            for i, logps in zip(batch, scores, strict=True):
                found[i] = logps
            done = sum(requests[i].length for i in batch)
            left -= done
            advance(done)
        advance(left)  # of sequences that are in no batch
        return found

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """See Scorer.rescore. Attention runs without a fused kernel."""
        attention = self._model.config._attn_implementation
        try:
            self._model.set_attn_implementation("eager")
            return [self.score([request])[0] for request in requests]
        except RuntimeError as error:  # torch raises it if a device fails or is out of memory
            raise ReflogpError(f"a forward pass in transformers failed: {cause(error)}") from error
        finally:
            self._model.set_attn_implementation(attention)

    def close(self) -> None:
        """See Scorer.close."""
        del self._model
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Batches of indices of requests with similar length, within the token budget."""
        lengths = [request.length for request in requests]
        batch: list[int] = []
        known = [i for i, one in enumerate(requests) if one.scored and self._knows(one)]
        for i in sorted(known, key=lambda i: -lengths[i]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self._batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _knows(self, request: Request) -> bool:
        """Whether every token has an embedding. Looking up a missing one breaks the GPU context."""
        return bool(max(request.prompt_ids.max(), request.response_ids.max()) < self._embeddings)

    @torch.inference_mode()
    def _score_batch(self, batch: list[Request]) -> list[Logps]:
        length = max(request.length for request in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        response = torch.zeros_like(ids, dtype=torch.bool)
        for row, request in enumerate(batch):
            ids[row, : request.length] = torch.from_numpy(request.token_ids)
            attention[row, : request.length] = 1
            response[row, len(request.prompt_ids) + torch.from_numpy(request.wanted)] = True
        ids, attention, response = (t.to(self.device) for t in (ids, attention, response))
        rows, targets, _ = predicting(ids, response)
        inputs = {"input_ids": ids, "attention_mask": attention}
        logps = response_logps(self._model, inputs, rows, targets)
        ends = np.cumsum([request.scored for request in batch])[:-1]
        return [part.astype(np.float32) for part in np.split(logps.cpu().numpy(), ends)]
