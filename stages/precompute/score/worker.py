"""Planned shards -> finished shards: known rows are reused, and an engine scores the others."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from reflogp.data_schemas.cache_shard import RESPONSES, token_counts
from reflogp.data_schemas.shard_origin import Origin, Problem, put_origin
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, read_plan
from reflogp.stages.precompute.score.engines.choose import start
from reflogp.stages.precompute.score.engines.protocol import Scorer
from reflogp.stages.precompute.score.engines.shared_beginnings import Requests
from reflogp.stages.precompute.score.reuse import ScoredRows, in_planned_order
from reflogp.stages.precompute.score.score_shard import (
    Place,
    Scores,
    requests_of,
    score_requests,
    scored_table,
)

Item = TypeVar("Item")
Made = TypeVar("Made")


class Done(NamedTuple):
    """A finished shard: the number of tokens that the engine scored, and the time in seconds."""

    tokens: int
    seconds: float


class _Read(NamedTuple):
    """A planned shard: its rows, the known ones with their scores, and the others."""

    planned: PlannedShard
    rows: pa.Table
    known: pa.Table
    unknown: pa.Table
    places: Sequence[Place]
    requests: Requests


class _Scored(NamedTuple):
    """A shard whose requests are scored (None: it has none), and the seconds that they took."""

    read: _Read
    scores: Scores | None
    method: str
    device: str
    seconds: float


class Worker:
    """Scores shards one by one. The engine starts when the first row needs it."""

    def __init__(self, job: Job, known: ScoredRows) -> None:
        self._job = job
        self._known = known
        self._scorer: Scorer | None = None

    def score(
        self,
        shards: Iterable[PlannedShard | None],
        advance: Callable[[float], None],
        say: Callable[[str], None],
    ) -> Iterator[Done]:
        """Score the unknown rows of planned shards, and write the shards.

        While the engine scores a shard, the next one is read and the last one is written. None
        among the shards means not to read ahead there.
        """
        scored = (self._score(read, advance, say) for read in ahead(self._read, shards))
        yield from ahead(self._write, scored)

    def close(self) -> None:
        """Stop the engine."""
        if self._scorer is not None:
            self._scorer.close()

    def _read(self, planned: PlannedShard) -> _Read:
        rows = read_plan(planned)
        known, unknown = self._known.split(rows)
        places, requests = requests_of(unknown)
        if self._job.engine.name == "vllm":
            _ = requests.questions  # made here, while the engine is busy
        return _Read(planned, rows, known, unknown, places, requests)

    def _score(
        self, read: _Read, advance: Callable[[float], None], say: Callable[[str], None]
    ) -> _Scored:
        advance(_sequence_tokens(read.known))
        if not read.unknown.num_rows:
            return _Scored(read, None, self._known.method, self._known.device, 0.0)
        scorer = self._start(say)
        begin = time.monotonic()
        scores = score_requests(read.requests, scorer, advance)
        return _Scored(read, scores, scorer.method, scorer.device, time.monotonic() - begin)

    def _write(self, scored: _Scored) -> Done:
        planned, rows, known, unknown, places, requests = scored.read
        table, problems, rescued = known, list[Problem](), 0
        if scored.scores is not None:
            fresh, problems, rescued = scored_table(unknown, places, requests, scored.scores)
            table = pa.concat_tables([known, fresh])
        table = in_planned_order(rows, table)
        origin = Origin(
            inputs=self._job.inputs.digest(),
            scoring=self._job.inputs.scoring_digest(),
            plan=planned.sha256,
            number=planned.number,
            method=scored.method,
            device=scored.device,
            **token_counts(table),
            truncated=_truncated(table),
            rescued=rescued,
            problems=problems,
        )
        write_shard(put_origin(table, origin), self._job.shard_path(planned.number))
        return Done(_sequence_tokens(unknown), scored.seconds)

    def _start(self, say: Callable[[str], None]) -> Scorer:
        if self._scorer is None:
            job = self._job
            self._scorer = start(job.engine, job.reference, job.config)
            say(f"scoring with {self._scorer.method}")
        return self._scorer


def ahead(work: Callable[[Item], Made], items: Iterable[Item | None]) -> Iterator[Made]:
    """`work` of each item, in a thread, one item ahead of what is taken; None: not ahead here."""
    coming: Future[Made] | None = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            following = None if item is None else thread.submit(work, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _truncated(table: pa.Table) -> int:
    prompt, chosen, rejected = (
        table.column(f"{name}_truncated") for name in ("prompt", "chosen", "rejected")
    )
    return int(pc.sum(pc.or_(pc.or_(prompt, chosen), rejected)).as_py() or 0)


def _sequence_tokens(table: pa.Table) -> int:
    """Total tokens of all prompt + response sequences."""
    prompts = pc.list_value_length(table.column("prompt_ids"))
    responses = [pc.list_value_length(table.column(f"{s}_ids")) for s in RESPONSES]
    return sum(int(pc.sum(pc.add(prompts, lengths)).as_py() or 0) for lengths in responses)
