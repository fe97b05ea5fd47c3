"""What log-probs are measured by: their definition, in the one place where tests compute it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from reflogp.stages.precompute.score.engines.protocol import Request

Ids = Sequence[int] | np.ndarray


def true_logps(model: nn.Module, prompt: Ids, response: Ids) -> Tensor:
    """log pi(y_t | x, y_<t) of one sequence by itself: no padding, all logits, a full log-softmax.

    Returns:
        float64 [tokens of the response], differentiable, in nats.
    """
    logps = true_logits(model, prompt, response).log_softmax(-1)
    return logps.gather(1, torch.from_numpy(np.asarray(response)).long()[:, None]).squeeze(1)


def true_logits(model: nn.Module, prompt: Ids, response: Ids) -> Tensor:
    """The logits that predict each token of the response, float64 [tokens, vocabulary]."""
    ids = torch.from_numpy(np.concatenate([prompt, response])).long()
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].double()


class Truth:
    """The definition for one model: that of a folder in float32, or a given one as it is."""

    def __init__(self, model: Path | nn.Module) -> None:
        self._model = (_load(model) if isinstance(model, Path) else model).eval()

    @torch.inference_mode()
    def logps(self, prompt: Ids, response: Ids, mask: np.ndarray | None = None) -> np.ndarray:
        """float64 [tokens of the response, or those that `mask` marks], in nats."""
        found: np.ndarray = true_logps(self._model, prompt, response).numpy()
        return found if mask is None else found[mask]

    def check(self, requests: list[Request], found: list[np.ndarray]) -> float:
        """Compare, and return the largest difference of a token."""
        worst = 0.0
        for request, logps in zip(requests, found, strict=True):
            assert logps.dtype == np.float32
            truth = self.logps(*request)
            np.testing.assert_allclose(logps, truth, atol=1e-4, rtol=0)
            worst = max(worst, float(np.abs(logps - truth).max(initial=0)))
        return worst


def _load(folder: Path) -> nn.Module:
    # sdpa leaves out Gemma 2's soft-capping of attention
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model
