"""Planned shard -> finished shard: known rows are reused, and an engine scores the others."""

import time
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from reflogp.data_schemas.cache_shard import RESPONSES, token_counts
from reflogp.data_schemas.shard_origin import Origin, Problem, put_origin
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, read_plan
from reflogp.stages.precompute.score.engines.choose import start
from reflogp.stages.precompute.score.engines.protocol import Scorer
from reflogp.stages.precompute.score.reuse import ScoredRows, in_planned_order
from reflogp.stages.precompute.score.score_shard import score_table


class Done(NamedTuple):
    """A finished shard: the number of tokens that the engine scored, and the time in seconds."""

    tokens: int
    seconds: float


class Worker:
    """Scores shards one by one. The engine starts when the first row needs it."""

    def __init__(self, job: Job, known: ScoredRows) -> None:
        self._job = job
        self._known = known
        self._scorer: Scorer | None = None

    def score(
        self,
        planned: PlannedShard,
        advance: Callable[[float], None],
        say: Callable[[str], None],
    ) -> Done:
        """Score the unknown rows of a planned shard, and write the shard."""
        rows = read_plan(planned)
        known, unknown = self._known.split(rows)
        problems: list[Problem] = []
        rescued = 0
        begin, scored, tokens = time.monotonic(), known, 0
        method, device = self._known.method, self._known.device
        if unknown.num_rows:
            scorer = self._start(say)
            begin, method, device = time.monotonic(), scorer.method, scorer.device
            fresh, problems, rescued = score_table(unknown, scorer, advance)
            tokens = _sequence_tokens(unknown)
            scored = pa.concat_tables([known, fresh])
        advance(_sequence_tokens(known))
        table = in_planned_order(rows, scored)
        origin = Origin(
            inputs=self._job.inputs.digest(),
            scoring=self._job.inputs.scoring_digest(),
            plan=planned.sha256,
            number=planned.number,
            method=method,
            device=device,
            **token_counts(table),
            truncated=_truncated(table),
            rescued=rescued,
            problems=problems,
        )
        write_shard(put_origin(table, origin), self._job.shard_path(planned.number))
        return Done(tokens, time.monotonic() - begin)

    def close(self) -> None:
        """Stop the engine."""
        if self._scorer is not None:
            self._scorer.close()

    def _start(self, say: Callable[[str], None]) -> Scorer:
        if self._scorer is None:
            job = self._job
            self._scorer = start(job.engine, job.reference, job.config)
            say(f"scoring with {self._scorer.method}")
        return self._scorer


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
