"""What happens at each step: a line of JSON in the run's folder, and a move of the progress bar."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_schemas.errors import ReflogpError
from stages.progress import Console


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends each step's metrics to a JSONL file, and keeps them for the run's record."""

    def __init__(self, path: Path) -> None:
        self.steps: list[dict[str, float]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ReflogpError(
                f"the loss of step {state.global_step} is {logs['loss']}: training has diverged. "
                "Lower --learning-rate, or raise --beta. Nothing was saved."
            )
        self.steps.append(logs)
        self._file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        self._file.flush()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the file."""
        self._file.close()


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

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One step is done."""
        self._advance(1)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take the bar away."""
        self._shown.close()
