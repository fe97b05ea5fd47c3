"""Decides which evaluated step is kept, and when early stopping ends the run.

Every evaluation uses the same rows, so two steps are compared row by row, and their difference has
a standard error. A later step replaces the best one only if it is better by more than that error: a
smaller difference is noise, and the earlier step is closer to the reference.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

ROWS = "rows"
"""Key of an evaluation's values per row: float64 [rows] of each possible --best-metric."""


class BestStep(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Sets the best step at each evaluation. Stops after `patience` evaluations that are no better.

    Its state is part of a checkpoint, so a resumed run makes the same decisions.
    """

    def __init__(self, patience: int = 0, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold
        self.waited = 0
        self.values: list[float] = []  # of the best step, row by row

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint holds."""
        return {
            "args": {"patience": self.patience, "threshold": self.threshold},
            "attributes": {"waited": self.waited, "values": self.values},
        }

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Compare the evaluation with the best one so far."""
        if args.metric_for_best_model is None or metrics is None:
            return
        name = args.metric_for_best_model.removeprefix("eval_")
        found: NDArray[np.float64] = metrics[ROWS][name]
        sign = 1.0 if args.greater_is_better else -1.0
        gain, error = _gain(sign * found, sign * np.asarray(self.values or found))
        better = not self.values or gain > error
        self.waited = (
            0 if not self.values or (better and gain > self.threshold) else self.waited + 1
        )
        if better:
            self.values = found.tolist()
            state.best_metric, state.best_global_step = float(found.mean()), state.global_step
        if self.patience and self.waited >= self.patience:
            control.should_training_stop = True


def _gain(values: NDArray[np.float64], best: NDArray[np.float64]) -> tuple[float, float]:
    """The mean difference of `values` and `best`, and its standard error.

    The error of a single row is unknown and counts as 0, so any gain is an improvement.
    """
    gains = values - best
    if not np.isfinite(best).all():
        return math.inf, 0.0
    if len(gains) < 2:
        return float(gains.mean()), 0.0
    return float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
