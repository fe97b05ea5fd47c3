"""What the rules look at, what they find, and the windows and errors that they share."""

from dataclasses import dataclass
from typing import NamedTuple

from reflogp.stages.train.advice.history import Column, Logged, Mean, last, mean_of

# Windows. Before so many steps a window says nothing; a fifth of them is the smallest window.
MIN_STEPS = 10
MIN_WINDOW = 5
RECENT = 0.25  # as in the run's record: "last" is the last quarter
LATE = 0.5  # where more power is needed and the level does not matter

# Standard errors. Chance passes three of them once in 700 looks at a large window, once in 50 at
# the smallest, so a rule also asks for an effect of some size. For "nothing happened yet" two are
# enough: more would call a slow run a dead one.
CLEAR = 3.0
UNCLEAR = 2.0


class Advice(NamedTuple):
    """Something that goes wrong.

    Attributes:
        code: its name, for programs.
        message: one sentence with the figures.
        remedy: what to change.
    """

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        train: metrics of the training steps.
        evals: metrics of the evaluations.
        beta: of the rewards, which are beta times log-ratios in nats.
        losses: names of the losses.
        reference: whether rewards are against the reference, so start at 0.
        share: how much of the run is done, 0 to 1.
        max_grad_norm: where the gradient is clipped; 0: it is not.
    """

    train: Logged
    evals: Logged
    beta: float
    losses: frozenset[str]
    reference: bool
    share: float
    max_grad_norm: float

    def recent(self, name: str) -> Mean:
        """Of the last quarter of the steps."""
        return mean_of(last(self.train[name], RECENT, MIN_WINDOW))

    def late(self, name: str) -> Mean:
        """Of the second half of the steps."""
        return mean_of(self.late_steps(name))

    def late_steps(self, name: str) -> Column:
        """Each of the second half of the steps."""
        return last(self.train[name], LATE, MIN_WINDOW)
