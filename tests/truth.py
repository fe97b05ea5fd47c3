"""What the engines are measured by: the definition of a log-prob, in float32."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from reflogp.stages.precompute.score.engines.protocol import Request


class Truth:
    """The definition: one sequence at a time, float32, full log-softmax."""

    def __init__(self, folder: Path) -> None:
        # sdpa leaves out Gemma 2's soft-capping of attention
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def logps(self, request: Request) -> np.ndarray:
        ids = torch.from_numpy(request.token_ids).long()
        start = len(request.prompt_ids)
        logps = torch.log_softmax(self._model(ids[None]).logits[0].double(), dim=-1)
        found: np.ndarray = logps[start - 1 : -1].gather(1, ids[start:, None]).squeeze(1).numpy()
        return found

    def check(self, requests: list[Request], found: list[np.ndarray]) -> float:
        """Compare, and return the largest difference of a token."""
        worst = 0.0
        for request, logps in zip(requests, found, strict=True):
            assert logps.dtype == np.float32
            truth = self.logps(request)
            np.testing.assert_allclose(logps, truth, atol=1e-4, rtol=0)
            worst = max(worst, float(np.abs(logps - truth).max()))
        return worst
