"""The values of two options: `--share 3/16` among jobs, and `--actors 2-8` on a Ray cluster.

Every job finds or makes the same plan and scores every 16th planned shard. Jobs therefore need no
coordinator and no locks, and any job can finish another's share.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
Item = TypeVar("Item")


class Share(NamedTuple):
    """The share of job `number`, counted from 1, of `of` jobs."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def pick(self, items: Sequence[Item]) -> list[Item]:
        """Return this job's items."""
        return list(items[self.number - 1 :: self.of])


def share(text: str) -> Share:
    """Parse `I/N`, or for `slurm` read the share from the environment of the array task.

    Raises:
        ValueError: the text has neither form, I is not in 1..N, or this is not an array task.
    """
    if text == "slurm":
        values = [os.environ.get(name, "") for name in _SLURM]
        if not all(value.isdecimal() for value in values):
            raise ValueError(f"'slurm' needs {', '.join(_SLURM)}: run it as a SLURM array task")
        task, first, count = map(int, values)
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        return _checked((task - first) // step + 1, count)
    if not (found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)):
        raise ValueError("must be I/N, such as 3/16, or 'slurm'")
    return _checked(int(found[1]), int(found[2]))


def _checked(number: int, of: int) -> Share:
    if not 1 <= number <= of:
        raise ValueError(f"shares count from 1 to {of}")
    return Share(number, of)


class Crew(NamedTuple):
    """Bounds on the number of actors; a run uses as many as the cluster has room for."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}-{self.most}"


def crew(text: str | int) -> Crew:
    """Parse bounds such as `2-8`; `4` means 4-4.

    Raises:
        ValueError: the text has neither form, or the bounds are not 1 <= least <= most.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", str(text))
    if found is None:
        raise ValueError("must be a number of actors, or two with a hyphen, such as 2-8")
    bounds = Crew(int(found[1]), int(found[2] or found[1]))
    if not 1 <= bounds.least <= bounds.most:
        raise ValueError(f"{text}: give 1 actor or more, and a minimum up to the maximum")
    return bounds
