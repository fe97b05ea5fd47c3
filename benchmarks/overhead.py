"""What stage one costs around the engine: plan, checks, shards and files, with a stub engine.

    python benchmarks/overhead.py [ROWS] [OUTPUT.json]

Rows of 100 prompt tokens and two responses of 100 tokens are planned, scored by a stub that
returns constants, and written. Prints microseconds a row, and peak memory along the way: it must
not grow with the data.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.precompute.plan import read_plan, write_plan
from stages.precompute.row_ids import RowIds
from stages.precompute.scorers.protocol import Logps, Request
from stages.precompute.shards import score_table, write_shard
from stages.precompute.tokenize import TokenizedRow

PROMPT, RESPONSE = 100, 100


class StubScorer:
    """A Scorer that costs next to nothing."""

    device = "none"
    method = "constants"

    def score(self, requests: Sequence[Request]) -> list[Logps]:
        """Constants of the right shape."""
        return [np.full(len(request.response_ids), -1.5, np.float32) for request in requests]

    def close(self) -> None:
        """Nothing to give back."""


def rows(count: int) -> Iterator[TokenizedRow]:
    """Rows of random ids; making them is timed apart."""
    source = random.Random(0)  # noqa: S311 - no secret
    vocabulary = list(range(50_000))
    ids = RowIds()
    for number in range(count):
        prompt = source.choices(vocabulary, k=PROMPT)
        chosen = source.choices(vocabulary, k=RESPONSE)
        rejected = source.choices(vocabulary, k=RESPONSE)
        row_id = ids.assign(prompt, chosen, rejected)
        yield TokenizedRow(row_id, number, prompt, chosen, rejected, False, False, False, None)


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run, print a table, and write the figures as JSON if asked to."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    folder = Path(tempfile.mkdtemp())
    figures: dict[str, float | int | list[float]] = {"rows": count}
    try:
        begin = time.perf_counter()
        for _ in rows(count):
            pass
        making = time.perf_counter() - begin
        memory = [peak_mib()]
        begin = time.perf_counter()
        plan = write_plan(rows(count), folder / "plan", shard_tokens=500_000)
        planning = time.perf_counter() - begin - making
        memory.append(peak_mib())
        begin = time.perf_counter()
        for number, shard in enumerate(plan):
            table, faulty = score_table(read_plan(shard), StubScorer(), lambda _: None)
            assert not faulty
            write_shard(table, folder / f"shard-{number:05d}.parquet")
            if number % max(1, len(plan) // 8) == 0:
                memory.append(peak_mib())
        scoring = time.perf_counter() - begin
    finally:
        shutil.rmtree(folder)
    figures |= {
        "shards": len(plan),
        "planning_us_per_row": 1e6 * planning / count,
        "scoring_and_writing_us_per_row": 1e6 * scoring / count,
        "total_us_per_row": 1e6 * (planning + scoring) / count,
        "peak_mib": memory,
    }
    for name, value in figures.items():
        shown = [round(v) for v in value] if isinstance(value, list) else round(value, 1)
        print(f"{name:32} {shown}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
