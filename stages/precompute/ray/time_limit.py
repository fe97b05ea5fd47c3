"""How long an actor may take for a shard before it is taken for one that hangs."""

_FLOOR_SECONDS = 3600.0
_TIMES = 20.0
_SECONDS_A_TOKEN = 1.0  # before any was measured; no engine of any use is slower


class TimeLimit:
    """Follows from the speed so far, unless it is given.

    It is to end what would last for ever, and nothing that works: twenty times what the slowest
    shard took a token, its engine's start included, and never less than an hour. Until a first
    shard is done, a second a token.
    """

    def __init__(self, minutes: float | None) -> None:
        self._given = None if minutes is None else minutes * 60
        self._slowest: float | None = None

    def measure(self, tokens: int, seconds: float) -> None:
        """A shard of so many tokens was done in so many seconds."""
        self._slowest = max(self._slowest or 0.0, seconds / max(tokens, 1))

    def seconds(self, tokens: int) -> float:
        """The most that a shard of so many tokens may take."""
        if self._given is not None:
            return self._given
        a_token = _SECONDS_A_TOKEN if self._slowest is None else _TIMES * self._slowest
        return max(_FLOOR_SECONDS, a_token * tokens)
