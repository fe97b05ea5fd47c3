"""How a stage reports to the user while it works. The command decides how reports look."""

from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, amount: float, note: str = "") -> None:
        """Advance the bar by `amount`; `note` is the latest figures, if there are any."""
        ...


class Console(Protocol):
    """The output of a stage."""

    def say(self, message: str) -> None:
        """Print one line."""
        ...

    def warn(self, message: str) -> None:
        """Print a warning in one line."""
        ...

    def track(self, what: str, total: float | None, unit: str) -> AbstractContextManager[Advance]:
        """Show a progress bar up to `total` (None: unknown). Yields the Advance that moves it."""
        ...
