"""The learning rate of each step: a warm-up shorter than the run, then --schedule.

transformers' warm-up starts at a rate of 0 and rounds its length up. The first step of every run
then changes nothing, and a run of one step trains nothing. Here every step has a rate above 0.
"""

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def total_steps(rows: int, *, rows_a_step: int, epochs: float, max_steps: int) -> int:
    """The number of optimizer steps of a run over `rows` rows."""
    return max_steps if max_steps > 0 else math.ceil(epochs * -(-rows // rows_a_step))


def warmup_length(share: float, steps: int) -> int:
    """The number of warm-up steps, rounded down; always less than `steps`."""
    return math.floor(share * steps)


def rate(step: int, *, schedule: Schedule, warmup: float, steps: int) -> float:
    """The learning rate of one step, as a share of its peak.

    Args:
        step: index of the step, from 0.
        schedule: decay after the warm-up.
        warmup: share of the steps for warm-up, below 1.
        steps: number of steps of the run.

    Returns:
        Above 0 for every step of the run; 1 for the first one after the warm-up.
    """
    warming = warmup_length(warmup, steps)
    if step < warming:
        return (step + 1) / (warming + 1)
    done = (step - warming) / (steps - warming)
    if schedule == "constant":
        return 1.0
    return max(0.0, 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
