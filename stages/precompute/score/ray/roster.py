"""The actors of a run: hired as the cluster has room, let go as the work runs out."""

from typing import Any

from reflogp.stages.precompute.division import Crew
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.score.ray.actor import ShardActor
from reflogp.stages.precompute.score.ray.cluster import Room
from reflogp.stages.precompute.score.reuse import ScoredRows

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


_CLOSE_SECONDS = 20


class Roster:
    """Living actors, by what they do: they start, are idle, or are busy (with whom calls them).

    An actor that waits for room is a demand that Ray's autoscaler sees, and one that is let go
    frees its node; so to hire as many as there is work for, and no more, is all it takes to scale.

    Attributes:
        starting: the answer that each awaits, and the actor.
        idle: those that wait for work.
        nodes: the node of each actor that has started.
        lost: how many in a row did not start. So many fewer than the most are hired, until one
            does: a node that cannot do the work is not asked for ever.
    """

    def __init__(self, job: Job, known: ScoredRows, room: Room, bounds: Crew) -> None:
        import ray

        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.nodes: dict[Any, str] = {}
        self.lost = 0
        self._bounds = bounds
        self._class = ray.remote(max_restarts=0, max_task_retries=0, **room.options())(ShardActor)
        self._arguments = (ray.put(job), ray.put(known))

    @property
    def working(self) -> int:
        """How many have started and live."""
        return len(self.nodes)

    def fit(self, work: int) -> None:
        """Hire or let go, so that there is an actor for each of `work` shards, within the bounds.

        Those that are busy are never let go.
        """
        least, most = self._bounds
        wanted = min(max(most - self.lost, least, self.working), work)
        surplus = len(self.starting) + self.working - wanted
        for _ in range(-surplus):
            actor = self._class.remote(*self._arguments)
            self.starting[actor.check.remote()] = actor
        # those that have not come are the first to go, those with an engine the last
        free = [*self.starting.items(), *((None, actor) for actor in self.idle)]
        for answer, actor in free[: max(surplus, 0)]:
            self.starting.pop(answer, None)
            self.let_go(actor)

    def arrived(self, answer: Any) -> str:
        """An actor has started, or failed to; returns its node, or raises what it raised."""
        import ray

        actor = self.starting.pop(answer)
        try:
            node: str = ray.get(answer)
        except Exception:
            self.lost += 1
            self.let_go(actor)
            raise
        self.lost = 0
        self.nodes[actor] = node
        self.idle.append(actor)
        return node

    def let_go(self, *actors: Any) -> None:
        """End actors; of those that are idle, and so can do it, the engine first."""
        import ray

        closing = [actor.close.remote() for actor in actors if actor in self.idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in actors:
            ray.kill(actor)
            self.nodes.pop(actor, None)
        self.idle = [actor for actor in self.idle if actor in self.nodes]

    def end(self) -> None:
        """End all."""
        self.let_go(*self.starting.values(), *self.nodes)
