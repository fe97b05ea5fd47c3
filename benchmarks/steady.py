"""How much of the time the real stage has work for an engine of a fixed rate.

    python -m benchmarks.steady [SHARDS] [TOKENS_PER_SECOND] [OUTPUT.json]

Rows as in overhead.py, in shards as large as on a GPU (4 million tokens), go through the stage. The
engine is a stub that takes each call's tokens at its rate, after the same preparation as for
vLLM's pooling model. Prints the share of the time from its first token to its last in which it had
some, and the rate of the whole run, with the first shard's reading and the last one's writing.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.overhead import (
    PROMPT,
    RESPONSE,
    StubScorer,
    Watch,
    make_job,
    make_plan,
    rows,
    timed,
)
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.choose import Choice
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen
from reflogp.stages.precompute.score.engines.shared_beginnings import Requests
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.reuse import ScoredRows

SHARD_TOKENS = 4_000_000
ROW_TOKENS = 2 * (PROMPT + RESPONSE)


class SteadyScorer(StubScorer):
    """An engine that scores so many tokens a second, whenever it has some."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.busy = 0.0
        self.first = self.last = 0.0

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """Constants, at the rate."""
        assert isinstance(requests, Requests)
        asked = requests.questions
        begin = time.monotonic()
        self.first = self.first or begin
        time.sleep(sum(request.length for request in requests) / self._rate)
        self.last = time.monotonic()
        self.busy += self.last - begin
        answers = [np.full(len(question.rows), -1.5, np.float32) for question in asked.questions]
        return asked.collect(answers)


def main() -> None:
    """Run once and print what it took."""
    shards, rate = (int(sys.argv[i]) if len(sys.argv) > i else d for i, d in ((1, 8), (2, 300_000)))
    folder, scorer = Path(tempfile.mkdtemp()), SteadyScorer(rate)
    worker.start = lambda *_: scorer  # type: ignore[attr-defined]
    job = replace(make_job(folder), engine=Choice("vllm", "none", "a stub"))
    count = shards * SHARD_TOKENS // ROW_TOKENS
    try:
        plan = make_plan(job, rows(count), count, SHARD_TOKENS)
        known = ScoredRows(folder, "")
        seconds, _ = timed(lambda: score(job, plan.shards, known, Watch()))
    finally:
        shutil.rmtree(folder)
    figures = {
        "shards": len(plan.shards),
        "tokens": plan.tokens,
        "rate": rate,
        "had_work": scorer.busy / (scorer.last - scorer.first),
        "of_rate_in_all": plan.tokens / rate / seconds,
    }
    for name, value in figures.items():
        print(f"{name:16} {value:,.4g}" if isinstance(value, float) else f"{name:16} {value:,}")
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
