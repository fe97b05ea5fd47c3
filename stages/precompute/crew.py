"""`--actors 2-8` -> how many actors of a Ray cluster score, at the least and at the most."""

import re
from typing import NamedTuple


class Crew(NamedTuple):
    """As many actors as a cluster has room for, within these bounds."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}-{self.most}"


def crew(text: str | int) -> Crew:
    """The bounds that `2-8` names; `4` is 4-4.

    Raises:
        ValueError: it is of neither form, or the bounds are not 1 <= least <= most.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", str(text))
    if found is None:
        raise ValueError("must be a number of actors, or two with a hyphen, such as 2-8")
    bounds = Crew(int(found[1]), int(found[2] or found[1]))
    if not 1 <= bounds.least <= bounds.most:
        raise ValueError(f"{text}: there must be 1 actor at the least, and no fewer at the most")
    return bounds
