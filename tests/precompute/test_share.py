"""Shares cover the work exactly once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.share_and_actors import share


@given(st.integers(0, 50), st.integers(1, 20))
def test_the_shares_of_all_jobs_are_the_whole_work(items, of):
    parts = [share(f"{number}/{of}").pick(range(items)) for number in range(1, of + 1)]
    assert sorted(item for part in parts for item in part) == list(range(items))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "a/b", "-1/4", "1/4/2", "", "9" * 20])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match=r"I/N|count from 1"):
        share(text)


@pytest.mark.parametrize(
    ("task", "first", "count", "step", "expected"),
    [(0, 0, 4, "", "1/4"), (3, 0, 4, "", "4/4"), (1, 1, 4, "1", "1/4"), (14, 10, 3, "2", "3/3")],
)
def test_slurm_names_the_share(monkeypatch, task, first, count, step, expected):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", str(first))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(count))
    if step:
        monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", step)
    assert PrecomputeConfig(reference="r", data="d", cache="c", share="slurm").share == expected


def test_slurm_outside_of_an_array_task_is_refused(monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(ValidationError, match="SLURM_ARRAY_TASK_ID"):
        PrecomputeConfig(reference="r", data="d", cache="c", share="slurm")
