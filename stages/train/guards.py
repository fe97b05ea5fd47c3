"""Stopping a run that diverges before its weights are spoilt."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_schemas.errors import ReflogpError


class DivergedError(ReflogpError):
    """Training cannot go on; the weights are those of the last step that was taken."""


class Guard(TrainerCallback):  # type: ignore[misc]
    """Raises DivergedError before a step whose gradient is not finite, and after too large a one.

    A step over `stop_grad_norm` has been clipped to --max-grad-norm when it is seen.
    """

    def __init__(self, stop_grad_norm: float) -> None:
        self._most = stop_grad_norm

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Look at the gradient that is about to be taken."""
        if model is None:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        if not bool(getattr(norm, "full_tensor", lambda: norm)().isfinite()):
            raise DivergedError(f"step {state.global_step + 1}: the gradient is not finite")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Look at the norm that the gradient had."""
        norm = (logs or {}).get("grad_norm", 0.0)
        if self._most and norm > self._most:
            raise DivergedError(
                f"step {state.global_step}: the gradient's norm is {norm:.3g}, above "
                f"--stop-grad-norm {self._most:g}"
            )
