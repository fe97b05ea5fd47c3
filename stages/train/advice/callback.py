"""Prints each warning once during a run, and keeps it for the run's record."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reflogp.data_schemas.run_record import RunWarning
from reflogp.stages.progress import Console
from reflogp.stages.train.advice.advise import advise
from reflogp.stages.train.config import TrainConfig

_LOOKS = 50  # checks per run; each reads the whole history


class Adviser(TrainerCallback):  # type: ignore[misc]
    """Checks the metrics after every 2% of the run, after every evaluation, and at the end."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self._config = config
        self._console = console
        self._found: dict[str, RunWarning] = {}

    @property
    def warnings(self) -> list[RunWarning]:
        """All warnings, in the order of their first appearance."""
        return list(self._found.values())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check the history if a check is due."""
        due = state.global_step % max(1, state.max_steps // _LOOKS) == 0
        if logs and ("eval_loss" in logs or ("loss" in logs and due)):
            self._look(state, state.max_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check once more."""
        self._look(state, state.global_step)

    def _look(self, state: TrainerState, total_steps: int) -> None:
        if not state.is_world_process_zero:
            return
        config, step = self._config, state.global_step
        for code, message, remedy in advise(
            state.log_history,
            beta=config.beta,
            losses=config.losses,
            total_steps=total_steps,
            max_grad_norm=config.max_grad_norm,
        ):
            earlier = self._found.get(code)
            first = step if earlier is None else earlier.first_step
            self._found[code] = RunWarning(
                code=code, message=message, remedy=remedy, first_step=first, last_step=step
            )
            if earlier is None:
                self._console.warn(f"step {step}: {message} {remedy}")
