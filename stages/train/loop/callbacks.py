"""What happens at each step: a line of JSON in the run's folder, and a move of the progress bar."""

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


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends each step's metrics, and each evaluation's, to a JSONL file.

    A resumed run's file begins with what its checkpoint holds, so that no step stands there twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write what was logged before the checkpoint."""
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
        """Only now is the number of steps known."""
        bar = self._console.track("training", state.max_steps, "steps")
        self._advance = self._shown.enter_context(bar)
        self._advance(state.global_step)  # of a resumed run

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One step is done."""
        self._advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Its metrics are there."""
        if note := figures(logs or {}):
            self._advance(0, note)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take the bar away."""
        self._shown.close()


class StopInTime(TrainerCallback):  # type: ignore[misc]
    """After a signal, makes a checkpoint of the step and ends the run there.

    The processes agree on the step, whichever of them the signal reached. It must come after
    SealCheckpoints.
    """

    _signal = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint."""
        self._signal = stopping()
        if args.world_size > 1:
            latest = torch.tensor(self._signal, device=args.device)
            torch.distributed.all_reduce(latest, op=torch.distributed.ReduceOp.MAX)
            self._signal = int(latest.item())
        control.should_save |= self._signal > 0

    def on_save(self, *_: Any, **__: Any) -> None:
        """It is written and sealed."""
        if self._signal:
            raise Stopped(self._signal)


_SHOWN = {
    "loss": "loss {:.3f}",
    "rewards/margins": "margin {:+.3f}",
    "rewards/accuracies": "acc {:.2f}",
    "learning_rate": "lr {:.1e}",
    "grad_norm": "grad {:.2f}",
}


def figures(logs: Mapping[str, float]) -> str:
    """The metrics of a training step on one short line; nothing of what is no training step."""
    if "loss" not in logs:
        return ""
    return "  ".join(form.format(logs[name]) for name, form in _SHOWN.items() if name in logs)


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
