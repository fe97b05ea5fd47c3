"""The input and output of the rules, and the windows and error levels that they share."""

from dataclasses import dataclass
from typing import NamedTuple

from reflogp.stages.train.advice.history import Column, Logged, Mean, last, mean_of

# Windows, in steps or as a share of them. Fewer than MIN_STEPS steps say nothing.
MIN_STEPS = 10
MIN_WINDOW = 5
RECENT = 0.25  # like "last" in the run's record
LATE = 0.5  # for rules that need more power and not the latest level

# In standard errors. Chance exceeds three of them in one of 700 checks of a large window, and in
# one of 50 of the smallest, so rules also require an effect of some size. Two are enough for
# "nothing happened yet": more would report slow runs as dead.
CLEAR = 3.0
UNCLEAR = 2.0


class Advice(NamedTuple):
    """A problem of a run.

    Attributes:
        code: a name for programs.
        message: one sentence with the figures.
        remedy: what to change.
    """

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """The input of the rules.

    Attributes:
        train: metrics of the training steps.
        evals: metrics of the evaluations.
        beta: of the rewards, which are beta times log-ratios in nats.
        losses: names of the losses.
        reference: whether rewards are relative to the reference, and so start at 0.
        share: how much of the run is done, 0 to 1.
        max_grad_norm: limit of gradient clipping; 0 for no clipping.
    """

    train: Logged
    evals: Logged
    beta: float
    losses: frozenset[str]
    reference: bool
    share: float
    max_grad_norm: float

    def recent(self, name: str) -> Mean:
        """The mean over the last quarter of the steps."""
        return mean_of(last(self.train[name], RECENT, MIN_WINDOW))

    def late(self, name: str) -> Mean:
        """The mean over the second half of the steps."""
        return mean_of(self.late_steps(name))

    def late_steps(self, name: str) -> Column:
        """The values of the second half of the steps."""
        return last(self.train[name], LATE, MIN_WINDOW)
