"""What a cache costs around the engine: plan, score with a stub, shards, resume, seal, verify;
diagnose and filter.

    python benchmarks/overhead.py [ROWS] [OUTPUT.json]

Rows of 100 prompt tokens, two responses of 100 tokens and two kept columns go through the real
stage, with a stub for the engine that returns constants. Then the same command finds everything
done, the finished shards are sealed, and the sealed cache is checked, diagnosed and filtered.
Prints microseconds a row, seconds, and peak memory along the way: it must not grow with the data.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reflogp.data_schemas import plan_record
from reflogp.data_schemas.manifest import Inputs
from reflogp.data_schemas.plan_record import PlanRecord
from reflogp.pipeline.curate import run_diagnose, run_filter
from reflogp.pipeline.run import run_integrity
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.cache.row_ids import RowIds, packed
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan import make_plan as planning
from reflogp.stages.precompute.plan.make_plan import Plan
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, write_plan
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.choose import Choice
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen
from reflogp.stages.precompute.score.finished import take_stock
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from reflogp.stages.progress import Advance

PROMPT, RESPONSE = 100, 100
SHARD_TOKENS = 500_000


class StubScorer:
    """A Scorer that costs next to nothing."""

    device = "none"
    method = "constants"

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """Constants of the right shape."""
        advance(sum(request.length for request in requests))
        return [np.full(request.scored, -1.5, np.float32) for request in requests]

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """The same."""
        return self.score(requests)

    def close(self) -> None:
        """Nothing to give back."""


class Watch:
    """A Console that notes peak memory from time to time."""

    def __init__(self) -> None:
        self.memory: list[int] = []

    def say(self, message: str) -> None:
        """Print it."""
        print(message)

    warn = say

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Advance]:
        """Note memory at each eighth of the way."""
        done = 0.0

        def advance(amount: float, note: str = "") -> None:
            nonlocal done
            before, done = done, done + amount
            if total and int(8 * done / total) > int(8 * before / total):
                self.memory.append(peak_mib())

        yield advance


def rows(count: int) -> Iterator[TokenizedRow]:
    """Rows of random ids; making them is timed apart."""
    source = random.Random(0)  # noqa: S311 - no secret
    vocabulary = list(range(50_000))
    ids = RowIds()
    for number in range(count):
        prompt, chosen, rejected = (
            packed(source.choices(vocabulary, k=k)) for k in (PROMPT, RESPONSE, RESPONSE)
        )
        row_id = ids.assign(prompt, chosen, rejected)
        confidence = source.gauss(1, 1)
        kept: list[dict[str, str | None]] = [
            {"name": "source", "value": f"source {source.randrange(5)}"},
            {"name": "language", "value": source.choice(["en", "de", None])},
        ]
        yield TokenizedRow(
            row_id, number, prompt, chosen, rejected, False, False, False, confidence, kept=kept
        )


def peak_mib() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def make_job(cache: Path) -> Job:
    """A job of no model and no data."""
    config = PrecomputeConfig(
        reference="none", data="none", cache=cache, verify_sample=0, keep=("source", "language")
    )
    inputs = Inputs(**dict.fromkeys(Inputs.model_fields, "none"))
    return Job(
        config, Checkpoint(cache, None, "float32"), Choice("transformers", "none", "a stub"), inputs
    )


def make_plan(
    job: Job, rows: Iterable[TokenizedRow], count: int, shard_tokens: int = SHARD_TOKENS
) -> Plan:
    """A plan of `count` rows, written as make_plan.py does it."""
    return finish_plan(job, write_plan(rows, job.path("plan"), shard_tokens), count)


def finish_plan(job: Job, shards: list[PlannedShard], count: int) -> Plan:
    """The record of a plan of `count` rows, none of which was quarantined."""
    folder = job.path("plan")
    with Quarantine(folder / planning.QUARANTINE_NAME):
        pass
    entries = [planning.entry(shard, shard.path.stat().st_size) for shard in shards]
    record = PlanRecord(
        schema_version=plan_record.SCHEMA_VERSION,
        reflogp_version="none", inputs=job.inputs, kind="paired", form="none", rows_read=count,
        template_diverged=0, stop_token_ids=[], shards=entries,
        quarantine=describe(folder / planning.QUARANTINE_NAME, rows=0, tokens=0),
        quarantined_by_reason={}, quarantine_summary="", config={}, reference="none", adapter=None,
        dtype="float32", engine={},
    )  # fmt: skip
    plan_record.write(folder, record)
    return Plan(folder, record, shards)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it returns."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def main() -> None:
    """Run once and print what it took."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder, watch = Path(tempfile.mkdtemp()), Watch()
    worker.start = lambda *_: StubScorer()  # type: ignore[attr-defined]
    job = make_job(folder)
    try:
        making, _ = timed(lambda: sum(1 for _ in rows(count)))
        planning_seconds, plan = timed(lambda: make_plan(job, rows(count), count))
        watch.memory.append(peak_mib())
        known = ScoredRows(folder, job.inputs.scoring_digest())
        scoring, _ = timed(lambda: score(job, plan.shards, known, watch))
        resuming, found = timed(
            lambda: (planning.find_plan(plan.folder), take_stock(job, plan.shards))[1]
        )
        assert not found.missing
        sealing, manifest = timed(lambda: seal(job, plan, watch))
        verifying, problems = timed(lambda: run_integrity(folder, watch))
        diagnosing, _ = timed(lambda: run_diagnose(folder, None, watch))
        rules = FilterRules(drop_contradictions=True, drop_duplicates=True, max_similarity=0.9)
        filtering, _ = timed(lambda: run_filter(folder, folder / "filtered", rules, watch))
        by = FilterRules(weight_by="confidence", drop_duplicates=True)
        weighing, _ = timed(lambda: run_filter(folder, folder / "weighted", by, watch))
        indexing, known = timed(lambda: ScoredRows(folder, job.inputs.scoring_digest()))
        assert not problems
        assert manifest.counts.rows == len(known) == count
        watch.memory.append(peak_mib())
    finally:
        shutil.rmtree(folder)
    planning_seconds -= making
    figures: dict[str, Any] = {
        "rows": count,
        "shards": len(plan.shards),
        "planning_us_per_row": 1e6 * planning_seconds / count,
        "scoring_and_writing_us_per_row": 1e6 * scoring / count,
        "total_us_per_row": 1e6 * (planning_seconds + scoring) / count,
        "resume_seconds": resuming,
        "seal_seconds": sealing,
        "verify_seconds": verifying,
        "diagnose_seconds": diagnosing,
        "filter_seconds": filtering,
        "filter_with_weights_seconds": weighing,
        "index_for_reuse_seconds": indexing,
        "peak_mib": watch.memory,
    }
    for name, value in figures.items():
        print(f"{name:32} {value if isinstance(value, list) else round(value, 1)}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
