"""What grows with the rows and the shards of a cache: seconds, bytes, and memory of every process.

    python -m benchmarks.scale [--rows 1000000] [--shard-rows 10000] [--tokens 10] [--memory 0]
        [--bulk] [--only NAME,...] [--output OUTPUT.json]

Rows of three short lists of `--tokens` go through the real stage with a stub for the engine: plan,
score, find what is finished, seal, verify, index for reuse, open for training. Each is a process of
its own, so that its memory is its own. 15,000 shards of four rows (`--rows 60000 --shard-rows 4`)
are the files of a cache of 150 million rows without their content; `TMPDIR` says where.

With `--bulk` nothing is done for single rows before the seal, so that 100 million can be sealed
(`--rows 100000000 --shard-rows 6667 --tokens 3`): plan and score then measure neither.

With `--memory 100000000` also what is kept in memory for each row, at that many rows, without
files: the code is the real one, only what it would read from files is drawn at random.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import bulk
from benchmarks.overhead import StubScorer, Watch, finish_plan, make_job, make_plan
from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.files.storage import entries
from reflogp.data_schemas.sealed_file import Shard
from reflogp.pipeline.run import run_integrity
from reflogp.stages.cache import integrity
from reflogp.stages.cache.row_ids import KeySet, RowIds, packed
from reflogp.stages.precompute.plan import make_plan as planning
from reflogp.stages.precompute.plan.planned_shards import scored_tokens
from reflogp.stages.precompute.score import reuse, worker
from reflogp.stages.precompute.score.finished import take_stock
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.data.held_out import held_out
from reflogp.stages.train.data.steps import ShuffledBatches

_AT_ONCE = 1_000_000
_FILES = 15_000  # at four million tokens a shard, of 100 million rows of 600 sequence tokens
_POINTS = 8


def rows(count: int, tokens: int) -> Iterator[TokenizedRow]:
    """Rows of random ids."""
    random, ids = np.random.default_rng(0), RowIds()
    for start in range(0, count, _AT_ONCE):
        some = min(_AT_ONCE, count - start)
        drawn = packed(random.integers(0, 50_000, some * 3 * tokens, np.int32))
        lists = (drawn[i : i + tokens] for i in range(0, len(drawn), tokens))
        for number, row in enumerate(zip(lists, lists, lists, strict=True), start):
            yield TokenizedRow(ids.assign(*row), number, *row, False, False, False, None)


def plan(cache: Path, count: int, tokens: int, shard_rows: int, in_bulk: bool) -> None:
    """Plan all rows."""
    job = make_job(cache)
    if in_bulk:
        shards = bulk.write_plan(job.path("plan"), count, tokens, shard_rows)
        finish_plan(job, shards, count)
    else:
        size = shard_rows * scored_tokens(next(rows(1, tokens)))
        make_plan(job, rows(count, tokens), count, size)


def find(cache: Path) -> tuple[Any, Any]:
    """The plan, and what is finished of it, as every command begins."""
    job = make_job(cache)
    found = planning.find_plan(job.path("plan"))
    assert found is not None
    return found, take_stock(job, found.shards)


def score_all(cache: Path, in_bulk: bool) -> None:
    """Score what is missing, and account for it."""
    worker.start = lambda *_: StubScorer()  # type: ignore[attr-defined]
    if in_bulk:
        worker.requests_of = bulk.requests_of  # type: ignore[attr-defined, assignment]
        worker.scored_table = bulk.scored_table  # type: ignore[attr-defined, assignment]
    job, (_, found) = make_job(cache), find(cache)
    score(job, found.missing, ScoredRows(cache, job.inputs.scoring_digest()), Watch())


def seal_all(cache: Path) -> None:
    """Seal the cache."""
    seal(make_job(cache), find(cache)[0], Watch())


def verify(cache: Path) -> None:
    """`reflogp verify`."""
    assert not run_integrity(cache, Watch())


def index(cache: Path) -> None:
    """Index all rows for reuse."""
    assert len(ScoredRows(cache, make_job(cache).inputs.scoring_digest()))


def open_for_training(cache: Path) -> None:
    """Map the columns that training reads."""
    assert len(CachedPairs(cache, manifests.read(cache)))


def memory_of_row_ids(count: int) -> None:
    """Keys of all rows, which tell copies apart."""
    keys, random = KeySet(), np.random.default_rng(0)
    for start in range(0, count, _AT_ONCE):
        for key in random.integers(0, 2**64, min(_AT_ONCE, count - start), np.uint64).tolist():
            keys.add(key)


def memory_of_known_rows(count: int) -> None:
    """The index of an earlier cache."""
    origin: Any = SimpleNamespace(method="", device="")
    random, each = np.random.default_rng(0), count // _FILES
    parts: Any = reuse
    parts._shards = lambda *_: ((Path(str(i)), origin) for i in range(_FILES))
    parts._keys = lambda _: random.integers(0, 2**64, each, np.uint64)
    assert len(ScoredRows(Path(), "")) == each * _FILES


def memory_of_sealing(count: int) -> None:
    """The ids of all rows, each of which must stand there once."""
    random, each = np.random.default_rng(0), count // _FILES
    shard = Shard(file="a", rows=each, tokens=0, bytes=0, sha256="")
    parts: Any = integrity
    parts._examined = lambda *_: (shard, [], random.integers(0, 2**64, each, np.uint64))
    integrity.examine(Path(), [shard] * _FILES)


def memory_of_held_out(count: int) -> None:
    """The draw of what is held out of training."""

    class Prompts:
        def __len__(self) -> int:
            return count

        def __getitem__(self, row: int) -> Any:
            return SimpleNamespace(prompt_ids=np.int64(row))

    trained, evaluated = held_out(Prompts(), 0.001, seed=1)
    assert len(trained) + len(evaluated) == count


def memory_of_shuffling(count: int) -> None:
    """The order of an epoch."""
    next(iter(ShuffledBatches(count, 16, seed=0)))


PHASES = (plan, score_all, find, seal_all, verify, index, open_for_training)
MEMORY = (memory_of_row_ids, memory_of_known_rows, memory_of_sealing, memory_of_held_out,
          memory_of_shuffling)  # fmt: skip


def watched(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What `work` takes in this process, which did nothing before it."""
    samples, ended = [resident_mib()], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            samples.append(resident_mib())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    work(*arguments)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    ended.set()
    thread.join()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "mib_over_time": samples[:: max(1, len(samples) // _POINTS)],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def resident_mib() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def alone(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """`watched` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        figures = pool.submit(watched, work, *arguments).result()
    print(work.__name__, figures, flush=True)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--bulk", action="store_true", help="no work for single rows before seal")
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--only", default="", help="names of functions of this file")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    figures: dict[str, Any] = {"options": vars(options) | {"output": None}}
    arguments: dict[Callable[..., Any], tuple[Any, ...]] = {
        plan: (options.rows, options.tokens, options.shard_rows, options.bulk),
        score_all: (options.bulk,),
    }
    cache = Path(tempfile.mkdtemp())
    try:
        for phase in PHASES if options.rows else ():
            figures[phase.__name__] = alone(phase, cache, *arguments.get(phase, ()))
        if options.rows:
            sizes = [size for size in entries(cache).values() if size]
            figures["files"], figures["bytes"] = len(sizes), sum(sizes)
            figures["manifest_bytes"] = (cache / manifests.FILE_NAME).stat().st_size
            figures["manifest_reading"] = alone(manifests.read, cache)
            print({name: figures[name] for name in ("files", "bytes", "manifest_bytes")})
    finally:
        shutil.rmtree(cache)
    for part in MEMORY if options.memory else ():
        if not wanted or part.__name__ in wanted:
            figures[part.__name__] = alone(part, options.memory)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
