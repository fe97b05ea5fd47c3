"""The rate of each step: above 0 in every one, and at its peak in a run of one step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.stages.train.schedule import rate, total_steps, warmup_length

schedules = st.sampled_from(["linear", "cosine", "constant"])


@given(schedules, st.floats(0, 1, exclude_max=True), st.integers(1, 500))
def test_every_step_of_every_run_has_a_rate_and_one_has_the_peak(schedule, warmup, steps):
    rates = [rate(n, schedule=schedule, warmup=warmup, steps=steps) for n in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 1
    peak = rates.index(1)
    assert peak == warmup_length(warmup, steps)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_linear_run_without_a_warmup_has_the_rates_of_transformers():
    from torch import nn, optim
    from transformers import get_linear_schedule_with_warmup

    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 0, 7)
    for step in range(7):
        ours = rate(step, schedule="linear", warmup=0, steps=7)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "steps"), [(12, 1, -1, 1), (33, 2, -1, 6), (33, 2, 4, 4)]
)
def test_steps_are_counted_as_the_trainer_counts_them(rows, epochs, max_steps, steps):
    assert total_steps(rows, rows_a_step=16, epochs=epochs, max_steps=max_steps) == steps
