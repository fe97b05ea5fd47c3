"""What a stage may tell a person while it works; the command decides how that looks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Console(Protocol):
    """Where a stage speaks."""

    def say(self, message: str) -> None:
        """Print one line."""
        ...

    def warn(self, message: str) -> None:
        """Print one line that asks for attention."""
        ...

    def track(
        self, what: str, total: float | None, unit: str
    ) -> AbstractContextManager[Callable[[float], None]]:
        """Show progress towards `total` (None: unknown); call what is yielded to advance it."""
        ...
