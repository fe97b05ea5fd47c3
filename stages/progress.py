"""What a stage may tell a person while it works; the command decides how that looks."""

from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, amount: float, note: str = "") -> None:
        """So much more is done; `note`, if there is one, holds the latest figures."""
        ...


class Console(Protocol):
    """Where a stage speaks."""

    def say(self, message: str) -> None:
        """Print one line."""
        ...

    def warn(self, message: str) -> None:
        """Print one line that asks for attention."""
        ...

    def track(self, what: str, total: float | None, unit: str) -> AbstractContextManager[Advance]:
        """Show progress towards `total` (None: unknown); call what is yielded to advance it."""
        ...
