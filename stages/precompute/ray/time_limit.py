"""How long an actor may take for a shard before it is taken for one that hangs."""

_FLOOR_SECONDS = 3600.0
_TIMES = 20.0


class TimeLimit:
    """Follows from the speed so far, unless it is given.

    It is to end what would last for ever, and nothing that works: twenty times what the slowest
    shard took a token, its engine's start included, and never less than an hour.
    """

    def __init__(self, minutes: float | None) -> None:
        self._given = None if minutes is None else minutes * 60
        self._slowest = 0.0

    def measure(self, tokens: int, seconds: float) -> None:
        """A shard of so many tokens was done in so many seconds."""
        self._slowest = max(self._slowest, seconds / max(tokens, 1))

    def seconds(self, tokens: int) -> float:
        """The most that a shard of so many tokens may take."""
        if self._given is not None:
            return self._given
        return max(_FLOOR_SECONDS, _TIMES * self._slowest * tokens)
