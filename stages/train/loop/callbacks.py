"""Callbacks of each step: metrics file, progress bar, stop on a signal, stop on divergence."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.progress import Console
from reflogp.stages.signals import Stopped, stopping

_SHOWN = {
    "loss": "loss {:.3f}",
    "rewards/margins": "margin {:+.3f}",
    "rewards/accuracies": "acc {:.2f}",
    "learning_rate": "lr {:.1e}",
    "grad_norm": "grad {:.2f}",
}


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends the metrics of each step and each evaluation to a JSONL file.

    A resumed run rewrites the file from its checkpoint, so no step is in it twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the metrics that were logged before the checkpoint."""
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = [_line(entry.pop("step"), entry) for entry in map(dict, state.log_history)]
            self._path.write_text("".join(lines), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs and ("loss" in logs or "eval_loss" in logs):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(state.global_step, logs))


def _line(step: int, logs: dict[str, Any]) -> str:
    return json.dumps({"step": step, **logs}) + "\n"


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows optimizer steps on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar, now that the number of steps is known."""
        bar = self._console.track("training", state.max_steps, "steps")
        self._advance = self._shown.enter_context(bar)
        self._advance(state.global_step)  # above 0 in a resumed run

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Advance by one step."""
        self._advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the step's metrics."""
        if note := figures(logs or {}):
            self._advance(0, note)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self._shown.close()


class StopInTime(TrainerCallback):  # type: ignore[misc]
    """After a signal, writes a checkpoint at the end of the step and stops the run.

    All processes stop at the same step, whichever of them got the signal. This callback must come
    after SealCheckpoints.
    """

    _signal = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint if a signal has arrived."""
        self._signal = stopping()
        if args.world_size > 1:
            latest = torch.tensor(self._signal, device=args.device)
            torch.distributed.all_reduce(latest, op=torch.distributed.ReduceOp.MAX)
            self._signal = int(latest.item())
        control.should_save |= self._signal > 0

    def on_save(self, *_: Any, **__: Any) -> None:
        """Stop, now that the checkpoint is written and sealed."""
        if self._signal:
            raise Stopped(self._signal)


def figures(logs: Mapping[str, float]) -> str:
    """The metrics of a training step in one short line; "" for other logs."""
    if "loss" not in logs:
        return ""
    return "  ".join(form.format(logs[name]) for name, form in _SHOWN.items() if name in logs)


class DivergedError(ReflogpError):
    """Training cannot continue. The weights are those after the last completed step."""


class Guard(TrainerCallback):  # type: ignore[misc]
    """Raises DivergedError before a step with a non-finite gradient, or after one too large.

    Above `stop_grad_norm` the step has already been taken, clipped to --max-grad-norm.
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
        """Check the gradient before the optimizer uses it."""
        if model is None:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        if not bool(getattr(norm, "full_tensor", lambda: norm)().isfinite()):
            # a kernel with a wrong backward pass shows in the first
            by = "" if state.global_step else f" (attention: {_kernels(model)})"
            raise DivergedError(f"step {state.global_step + 1}: the gradient is not finite{by}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check the norm of the gradient before clipping."""
        norm = (logs or {}).get("grad_norm", 0.0)
        if self._most and norm > self._most:
            raise DivergedError(
                f"step {state.global_step}: the gradient's norm is {norm:.3g}, above "
                f"--stop-grad-norm {self._most:g}"
            )


def _kernels(model: nn.Module) -> str:
    """The attention that the model runs, and which of torch's kernels it may use."""
    inner: Any = getattr(model, "module", model)
    attention: str = inner.config._attn_implementation
    if attention != "sdpa":
        return attention
    names = "flash", "mem_efficient", "cudnn", "math"
    allowed = [name for name in names if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
    return f"sdpa by {', '.join(allowed)}"
