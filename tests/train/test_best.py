"""The best step is one that is better by more than its noise."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from reflogp.stages.train.loop.best import ROWS, BestStep


def after(evaluations, *, greater=False, patience=0, threshold=0.0, restart_after=None):
    """The state and control after evaluations of rows, one a step."""
    args = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=greater)
    state, control = TrainerState(), TrainerControl()
    best = BestStep(patience, threshold)
    for step, rows in enumerate(evaluations, start=1):
        state.global_step = step
        best.on_evaluate(args, state, control, {ROWS: {"loss": np.asarray(rows, np.float64)}})
        if step == restart_after:
            kept = best.state()
            best = BestStep(**kept["args"])
            for name, value in kept["attributes"].items():
                setattr(best, name, value)
    return state, control


def test_a_step_that_is_better_in_every_row_is_the_best():
    state, _ = after([[0.7, 0.6, 0.9], [0.6, 0.5, 0.8], [0.8, 0.7, 1.0]])
    assert (state.best_global_step, state.best_metric) == (2, pytest.approx(0.6333333))
    state, _ = after([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]], greater=True)
    assert state.best_global_step == 2


def test_a_gain_within_the_noise_of_its_rows_is_none():
    # the mean falls by 0.05, and the rows' differences scatter by 0.3
    noisy = [[0.7, 0.7, 0.7, 0.7], [0.3, 1.0, 0.4, 0.9]]
    assert after(noisy)[0].best_global_step == 1
    assert after([[0.7] * 4, [0.65] * 4])[0].best_global_step == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 5))
def test_evaluations_that_are_all_the_same_keep_the_first(rows, evaluations):
    state, _ = after([rows] * evaluations)
    assert state.best_global_step == 1


def test_gains_that_are_small_add_up():
    source = np.random.default_rng(0)
    noise = source.normal(0, 0.02, (12, 30))
    fall = 0.7 - 0.003 * np.arange(12)[:, None]
    assert after(fall + noise)[0].best_global_step > 1


def test_waiting_is_counted_from_the_last_step_that_was_better_by_the_threshold():
    falling = [[0.9, 0.9], [0.8, 0.8], [0.79, 0.79], [0.78, 0.78], [0.5, 0.5]]
    assert not after(falling, patience=2)[1].should_training_stop
    state, control = after(falling[:4], patience=2, threshold=0.05)
    assert control.should_training_stop
    assert state.best_global_step == 4
    assert not after(falling[:3], patience=2, threshold=0.05)[1].should_training_stop


@pytest.mark.parametrize("restart_after", [1, 2, 3])
def test_a_restart_changes_nothing(restart_after):
    source = np.random.default_rng(1)
    evaluations = source.normal(0.7, 0.01, (6, 20))
    whole, control = after(evaluations, patience=3)
    again, other = after(evaluations, patience=3, restart_after=restart_after)
    assert again.best_global_step == whole.best_global_step
    assert other.should_training_stop == control.should_training_stop
