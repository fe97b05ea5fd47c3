"""How serious a figure is, and how it is said.

The limits are rules of thumb (docs/diagnose.md); no share counts as unusual that chance could give.
"""

import numpy as np

from stages.diagnose.diagnosis import Severity


def grade(value: float, warning: float, problem: float) -> Severity:
    """Of a value from which on it is a warning, and a problem."""
    return "problem" if value >= problem else "warning" if value >= warning else "fine"


def beyond_chance(share: float, count: int) -> bool:
    """Whether a share of `count` draws is more than two standard errors from one half."""
    return bool(abs(share - 0.5) > 1 / np.sqrt(max(count, 1)))


def signed(value: float | None) -> str:
    """A correlation for people."""
    return "none" if value is None else f"{value:+.2f}"


def counted(number: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {one if number == 1 else many}"
