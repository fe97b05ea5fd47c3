"""Planned shards -> finished shards, with the actors of a Ray cluster.

This uses plain actors instead of Ray Data. The plan is already a partition, a shard is its own
commit, and errors must say which shard failed, how often and why, which Ray Data hides. Ray only
places processes and reports their death. Only shard numbers and counts pass through it, and a run
leaves the same files as one without Ray.
"""

import time
from collections import Counter, deque
from typing import Any, NamedTuple

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard
from reflogp.stages.precompute.score.account import Account
from reflogp.stages.precompute.score.finished import take_stock
from reflogp.stages.precompute.score.ray.cluster import connect, plain, room_of_an_actor
from reflogp.stages.precompute.score.ray.roster import Roster, TimeLimit
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.score.worker import Done
from reflogp.stages.precompute.share_and_actors import crew
from reflogp.stages.progress import Advance, Console

ATTEMPTS = 3
"""How often a shard is tried, each time by a different actor."""

START_SECONDS = 900.0
"""How long to wait until the minimum of actors has found room, which may take a new node."""

_LOOK_SECONDS = 1.0
_NAMED = 5  # failures in one message


def score_on_ray(
    job: Job, missing: list[PlannedShard], known: ScoredRows, account: Account, console: Console
) -> None:
    """Score shards on the cluster and write them. An actor that dies loses only its current shard.

    Args:
        job: the model, engine and cache.
        missing: the shards to score.
        known: rows that were scored before.
        account: records each shard.
        console: for progress and failures.

    Raises:
        InputError: there is no cluster, or a node does not see the cache or the checkpoint.
        ReflogpError: no actor finds room, or a shard failed ATTEMPTS times. In the second case the
            other shards are finished.
    """
    connect(job.config)
    import ray

    room, bounds = room_of_an_actor(job.config), crew(job.config.actors)
    account.use(f"{bounds} Ray actors of {room}")
    roster = Roster(job, known, room, bounds)
    console.say(f"scoring with {bounds} actors of {room} each, as the cluster has room")
    try:
        with console.track("scoring", sum(p.tokens for p in missing), "tokens") as advance:
            run = _Run(job, missing, roster, account, console, advance)
            begin = time.monotonic()
            while run.left:
                run.step()
                if roster.working < min(bounds.least, run.left):
                    if time.monotonic() - begin > START_SECONDS:
                        raise _no_room(bounds.least, str(room), roster.working)
                else:
                    begin = time.monotonic()
        run.require_all()
    except ray.exceptions.RayError as error:  # the cluster itself has failed
        raise plain(error) from error
    finally:
        roster.end()


class _Busy(NamedTuple):
    """An actor, the shard that it scores, and the start time."""

    actor: Any
    planned: PlannedShard
    begin: float


class _Run:
    """The state of all shards of a run."""

    def __init__(
        self,
        job: Job,
        missing: list[PlannedShard],
        roster: Roster,
        account: Account,
        console: Console,
        advance: Advance,
    ) -> None:
        self._job, self._roster, self._account = job, roster, account
        self._console, self._advance = console, advance
        self._todo = deque(missing)
        self._busy: dict[Any, _Busy] = {}
        self._left_tokens = sum(planned.tokens for planned in missing)
        self._failures: Counter[int] = Counter()
        self._given_up: dict[int, str] = {}
        self._finished, self._rows, self._tokens = 0, 0, 0
        self._limit = TimeLimit(job.config.shard_minutes)
        self._least = crew(job.config.actors).least
        self._begin = time.monotonic()

    @property
    def left(self) -> int:
        """The number of shards that are neither finished nor given up."""
        return len(self._todo) + len(self._busy)

    def step(self) -> None:
        """Give work to idle actors, and handle the answers that have arrived."""
        import ray

        while self._todo and self._roster.idle:
            actor, planned = self._roster.idle.pop(), self._todo.popleft()
            answer = actor.score.remote(planned)
            self._busy[answer] = _Busy(actor, planned, time.monotonic())
        self._roster.fit(self.left)
        awaited = [*self._roster.starting, *self._busy]
        for answer in ray.wait(awaited, timeout=_LOOK_SECONDS)[0]:
            if answer in self._busy:
                self._scored(answer)
            else:
                self._started(answer)
        self._stop_hung()

    def _started(self, answer: Any) -> None:
        try:
            self._roster.arrived(answer)
        except Exception as error:
            self._console.warn(f"an actor did not start: {plain(error)}")
            if self._roster.lost >= ATTEMPTS and self._roster.working < self._least:
                raise plain(error) from error

    def _scored(self, answer: Any) -> None:
        import ray

        actor, planned, begin = self._busy.pop(answer)
        try:
            done = ray.get(answer)
        except Exception as error:  # noqa: BLE001 - Ray raises the node's error here
            node = self._roster.nodes[actor]
            self._roster.let_go(actor)  # an engine that failed may be broken
            self._failed(planned, f"on {node}: {plain(error)}")
        else:
            self._roster.idle.append(actor)
            self._limit.measure(planned.tokens, time.monotonic() - begin)
            self._done(planned, done)

    def _stop_hung(self) -> None:
        now = time.monotonic()
        for answer, (actor, planned, begin) in list(self._busy.items()):
            seconds = self._limit.seconds(planned.tokens)
            if now - begin > seconds:
                del self._busy[answer]
                node = self._roster.nodes[actor]
                self._roster.let_go(actor)
                self._failed(
                    planned,
                    f"on {node}: it was stopped after {seconds / 60:,.1f} minutes "
                    "(--shard-minutes)",
                )

    def _done(self, planned: PlannedShard, done: Done) -> None:
        self._finished += 1
        self._rows += planned.rows
        self._tokens += planned.tokens
        self._left_tokens -= planned.tokens
        # actors run in parallel, so each counts for a part of the elapsed time
        self._account.add(tokens=done.tokens, seconds=done.seconds / max(self._roster.working, 1))
        self._advance(planned.tokens, self._figures())

    def _failed(self, planned: PlannedShard, problem: str) -> None:
        if take_stock(self._job, [planned]).finished:  # the actor died after writing the file
            self._done(planned, Done(0, 0.0))
            return
        number, name = planned.number, self._job.shard_path(planned.number).name
        self._failures[number] += 1
        self._console.warn(f"{name} failed {self._failures[number]} of {ATTEMPTS} times {problem}")
        if self._failures[number] < ATTEMPTS:
            self._todo.append(planned)  # after the others, which may succeed
            return
        self._given_up[number] = f"{name} {problem}"
        self._left_tokens -= planned.tokens
        if not self._finished:  # then the shard is not to blame
            self.require_all()

    def _figures(self) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-9)
        speed = self._tokens / seconds
        minutes = self._left_tokens / speed / 60
        return (
            f"{self._rows:,} rows, actors {self._roster.working}, {speed:,.0f} tokens/s, "
            f"{minutes:,.1f} min left, {self._failures.total()} failures"
        )

    def require_all(self) -> None:
        """Raise if a shard was given up."""
        if self._given_up:
            named = "; ".join(list(self._given_up.values())[:_NAMED])
            raise ReflogpError(
                f"{len(self._given_up)} shards failed {ATTEMPTS} times each: {named}. "
                f"{self._finished} shards are finished and kept: run the command again."
            )


def _no_room(least: int, room: str, working: int) -> ReflogpError:
    import ray

    has = ", ".join(
        f"{count:g} {kind}"
        for kind, count in ray.cluster_resources().items()
        if kind in {"CPU", "GPU"}
    )
    return ReflogpError(
        f"only {working} of the minimum of {least} --actors found room within "
        f"{START_SECONDS / 60:.0f} minutes. Each needs {room}, and the cluster has "
        f"{has or 'nothing'}. Look at `ray status`; finished shards are kept."
    )
