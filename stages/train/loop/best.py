"""Which evaluated step is kept, and when to stop waiting for a better one.

The same rows are evaluated each time, so two steps are compared row by row, and their difference
has a standard error. A later step takes the place of the best one only where it is better by more
than that: what is not above the noise is no improvement, and the earlier step is nearer to the
reference.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

ROWS = "rows"
"""Beside the means of an evaluation: float64 [rows] of each metric that can be the best one."""


class BestStep(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Sets the state's best step at each evaluation; stops after `patience` that were no better.

    A checkpoint holds its state, so that a resumed run decides as it would have.
    """

    def __init__(self, patience: int = 0, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold
        self.waited = 0
        self.values: list[float] = []  # of the best step, row by row

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
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
        """Compare with the best so far."""
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
    """By how much `values` are above `best` on average, and the standard error of that.

    One row has no spread to estimate an error from, so there any gain counts.
    """
    gains = values - best
    if not np.isfinite(best).all():
        return math.inf, 0.0
    if len(gains) < 2:
        return float(gains.mean()), 0.0
    return float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
