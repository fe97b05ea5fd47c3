"""The actors of a run: started while there is work for them, stopped when it runs out."""

from typing import Any

from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.score.ray.actor import ShardActor
from reflogp.stages.precompute.score.ray.cluster import Room
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.share_and_actors import Crew

_FLOOR_SECONDS = 3600.0
_TIMES = 20.0
_SECONDS_A_TOKEN = 1.0  # before the first measurement; no useful engine is slower
_CLOSE_SECONDS = 20


class TimeLimit:
    """The time limit of a shard. Unless given, it follows from the speed so far.

    The limit stops shards that hang, but none that make progress: it is 20 times the slowest time
    per token so far, including the engine's start, and at least an hour. Before the first shard is
    finished, it is one second per token.
    """

    def __init__(self, minutes: float | None) -> None:
        self._given = None if minutes is None else minutes * 60
        self._slowest: float | None = None

    def measure(self, tokens: int, seconds: float) -> None:
        """Record the time that a shard took."""
        self._slowest = max(self._slowest or 0.0, seconds / max(tokens, 1))

    def seconds(self, tokens: int) -> float:
        """The time limit of a shard with this many tokens."""
        if self._given is not None:
            return self._given
        a_token = _SECONDS_A_TOKEN if self._slowest is None else _TIMES * self._slowest
        return max(_FLOOR_SECONDS, a_token * tokens)


class Roster:
    """Living actors by state: starting, idle, or busy. The caller keeps track of the busy ones.

    Ray's autoscaler sees an actor that waits for room as demand, and a stopped actor frees its
    node. Scaling therefore only takes the right number of actors: as many as there are shards to
    score.

    Attributes:
        starting: each actor that starts, by the answer that it awaits.
        idle: actors that wait for work.
        nodes: the node of each actor that has started.
        lost: how many actors in a row have failed to start. The maximum is reduced by this number
            until one starts, so a node that cannot do the work is not retried forever.
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
        """The number of running actors."""
        return len(self.nodes)

    def fit(self, work: int) -> None:
        """Start or stop actors until there is one for each of `work` shards, within the bounds.

        Busy actors are never stopped.
        """
        least, most = self._bounds
        wanted = min(max(most - self.lost, least, self.working), work)
        surplus = len(self.starting) + self.working - wanted
        for _ in range(-surplus):
            actor = self._class.remote(*self._arguments)
            self.starting[actor.check.remote()] = actor
        # stop actors that have not started first, those with an engine last
        free = [*self.starting.items(), *((None, actor) for actor in self.idle)]
        for answer, actor in free[: max(surplus, 0)]:
            self.starting.pop(answer, None)
            self.let_go(actor)

    def arrived(self, answer: Any) -> str:
        """Handle an actor that has started. Returns its node, or raises the actor's error."""
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
        """Stop actors. Idle ones, which can still answer, stop their engine first."""
        import ray

        closing = [actor.close.remote() for actor in actors if actor in self.idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in actors:
            ray.kill(actor)
            self.nodes.pop(actor, None)
        self.idle = [actor for actor in self.idle if actor in self.nodes]

    def end(self) -> None:
        """Stop all actors."""
        self.let_go(*self.starting.values(), *self.nodes)
