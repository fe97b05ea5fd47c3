"""What stage two's input costs: opening a large cache, and fetching and collating a step's pairs.

    python -m benchmarks.input [ROWS] [OUTPUT.json]

Rows as in overhead.py, scored by a stub. Prints how long the cache takes to open, milliseconds of
input a step, the step time of which that is 2%, and memory that is the process's own, along the
way: it must not grow with the rows that were read.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.overhead import StubScorer, Watch, make_job, make_plan, timed
from benchmarks.overhead import rows as random_rows
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.train.data.batches import shared
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.data.steps import ShuffledBatches, passes

STEPS, PAIRS, BATCH = 4000, 16, 2


def own_mib() -> float:
    """Memory that is this process's own: pages of the mapped file can be dropped by the system."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def main() -> None:
    """Run once and print what it took."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder = Path(tempfile.mkdtemp())
    worker.start = lambda *_: StubScorer()  # type: ignore[attr-defined]
    try:
        job = make_job(folder)
        plan = make_plan(job, random_rows(rows), rows)
        score(job, plan.shards, ScoredRows(folder, job.inputs.scoring_digest()), Watch())
        manifest = seal(job, plan, Watch())
        before = own_mib()
        opening, pairs = timed(lambda: CachedPairs(folder, manifest))
        times, memory = [], [own_mib()]
        for number, positions in enumerate(ShuffledBatches(len(pairs), PAIRS, seed=0)):
            begin = time.perf_counter()
            step = [pairs[position] for position in positions]
            batches = [shared(one.pairs) for one in passes(step, BATCH)]
            times.append(time.perf_counter() - begin)
            assert len(batches) == PAIRS // BATCH
            if number % (STEPS // 4) == STEPS // 4 - 1:
                memory.append(own_mib())
            if number == STEPS - 1:
                break
    finally:
        shutil.rmtree(folder)
    median = 1e3 * statistics.median(times)
    figures: dict[str, Any] = {
        "rows": rows,
        "opening_seconds": opening,
        "input_ms_per_step_of_16_pairs": median,
        "p99_ms": 1e3 * statistics.quantiles(times, n=100)[-1],
        "is_2_percent_of_a_step_of_ms": 50 * median,
        "own_mib_before": before,
        "own_mib": memory,
    }
    for name, value in figures.items():
        print(f"{name:32} {value if isinstance(value, list) else round(value, 2)}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
