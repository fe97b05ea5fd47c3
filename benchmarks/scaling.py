"""Stage one on 1, 2 and 4 Ray actors with an engine whose time is fixed, and what its driver costs.

    python -m benchmarks.scaling MODEL DATA [--workers 1,2,4] [--shards 48] [--seconds 2]
        [--rows 100000] [--output OUTPUT.json]

First the driver: DATA, repeated up to `--rows`, goes through the real planner with MODEL's
tokenizer, then to one actor whose engine takes no time, and is sealed. So do 1,000 rows, twice
before: the first time shows what a run's start takes, the second what is not to be counted as a
row's. Prints CPU time of this process: seconds at the start, and microseconds for each row more.

Then efficiency: on a Ray cluster of one raylet an actor on this machine, shards each of which takes
its engine `--seconds`, asleep. So it shows what hand-out and commit cost, and not how cores are
shared. Efficiency is the speed over that of one actor times their number: of the whole run, actors'
start included, and from the first round of shards on.
"""

import argparse
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from benchmarks.overhead import StubScorer, Watch, make_plan, rows
from reflogp.data_schemas.manifest import Inputs
from reflogp.pipeline.console import quiet_transformers
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan import make_plan as planning
from reflogp.stages.precompute.plan.make_plan import load_tokenizer
from reflogp.stages.precompute.read.sources import read_source
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen
from reflogp.stages.precompute.score.finished import take_stock
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.ray import roster
from reflogp.stages.precompute.score.ray.actor import ShardActor
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.precompute.tokens.reader import Reader
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow

Result = TypeVar("Result")

GPU_SHARD_TOKENS = 4_000_000  # the default where there is a GPU
FEW = 1_000  # rows
ROWS, TOKENS = 100, 400  # of a shard; of a row


class Sleeper(StubScorer):
    """An engine that takes so many seconds for each call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """Constants, after a while."""
        time.sleep(self._seconds)
        return super().score(requests, advance)


class StubActor(ShardActor):
    """The real actor around a stub."""

    def __init__(self, job: Job, known: ScoredRows) -> None:
        super().__init__(job, known)
        seconds = float(str(job.config.engine_args["seconds"]))
        worker.start = lambda *_: Sleeper(seconds)  # type: ignore[attr-defined]


@contextmanager
def nodes(count: int) -> Iterator[str]:
    """The address of a cluster of `count` nodes of one CPU, beside that of the driver."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def make_job(cache: Path, reference: Path, data: str, **options: Any) -> Job:
    """A job for the stub on a Ray cluster."""
    config = PrecomputeConfig(
        reference=str(reference),
        data=data,
        cache=cache,
        backend="ray",
        verify_sample=0,
        engine="transformers",
        **options,
    )
    inputs = Inputs(**dict.fromkeys(Inputs.model_fields, "none"))
    return Job(
        config, Checkpoint(reference, None, "float32"), choose("transformers", reference), inputs
    )


class Finishes(Watch):
    """A Console that notes when shards were finished."""

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Any]:
        """Note the time of each advance."""
        self.times: list[float] = []
        yield lambda amount, note="": self.times.append(time.perf_counter())


def scaling(workers: int, shards: int, seconds: float) -> dict[str, float]:
    """Shards a second on so many actors: of the whole run, and from the first round on."""
    with tempfile.TemporaryDirectory() as folder, nodes(workers) as address:
        cache, console = Path(folder), Finishes()
        job = make_job(
            cache, cache, "none", address=address, actors=workers, engine_args={"seconds": seconds}
        )
        plan = make_plan(job, rows(shards * ROWS), shards * ROWS, ROWS * TOKENS)
        assert len(plan.shards) == shards
        begin = time.perf_counter()
        score(job, plan.shards, ScoredRows(cache, ""), console)
        whole = time.perf_counter() - begin
        assert not take_stock(job, plan.shards).missing
        steady = console.times[-1] - console.times[workers - 1]
        return {
            "actors": workers,
            "seconds": whole,
            "shards_per_second": shards / whole,
            "steady_shards_per_second": (shards - workers) / steady,
        }


Times = NDArray[np.float64]
"""CPU and wall time of this process in seconds."""


def now() -> Times:
    """Since some time."""
    return np.array([time.process_time(), time.perf_counter()])


class TimedReader(Reader):
    """Times a hundred rows at once, since reading the clock takes as long as reading a row."""

    spent: Times

    def tokenized(self, *arguments: Any, **options: Any) -> Iterator[TokenizedRow]:
        """The same rows."""
        rows = super().tokenized(*arguments, **options)
        TimedReader.spent = np.zeros(2)
        some: list[TokenizedRow] | None = None
        while some != []:
            begin = now()
            some = list(islice(rows, 100))
            TimedReader.spent += now() - begin
            yield from some


def timed(work: Callable[[], Result]) -> tuple[Times, Result]:
    """What `work` takes, and what it returns."""
    begin = now()
    result = work()
    return now() - begin, result


def parts(job: Job, rows: Iterable[str]) -> dict[str, Times]:
    """What each thing takes that the driver does for a cache of `rows`, lines of JSON."""
    cache, console = job.config.cache, Watch()
    Path(job.config.data).write_text("".join(rows))
    loading, loaded = timed(lambda: load_tokenizer(job.reference, job.config))
    planning.load_tokenizer = lambda *_: loaded
    both, plan = timed(lambda: planning.make_plan(job, console))
    found = {
        "load the tokenizer": loading,
        "read, normalize, tokenize, row id": TimedReader.spent,
        "plan: sort, write, hash": both - TimedReader.spent,
        "hand out, account (wall: until the actor is done)": timed(
            lambda: score(job, plan.shards, ScoredRows(cache, ""), console)
        )[0],
        "find what is finished": timed(lambda: take_stock(job, plan.shards))[0],
        "seal: read, hash and check all": timed(lambda: seal(job, plan, console))[0],
    }
    shutil.rmtree(cache)
    return found


def driver(model: Path, data: str, count: int) -> dict[str, tuple[Times, Times]]:
    """What each thing takes that the driver does: at the start, and for each row more."""
    planning.Reader = TimedReader  # type: ignore[attr-defined]
    lines = [json.dumps(row.data) + "\n" for row in read_source(data) if row.data is not None]
    with tempfile.TemporaryDirectory() as folder, nodes(1) as address:
        job = make_job(
            Path(folder) / "cache", model, f"{folder}/data.jsonl", address=address, actors=1,
            engine_args={"seconds": 0}, shard_tokens=GPU_SHARD_TOKENS,
        )  # fmt: skip
        first, few, many = (parts(job, islice(cycle(lines), n)) for n in (FEW, FEW, count))
    found = {}
    for name in many:
        row = (many[name] - few[name]) / (count - FEW)
        found[name] = first[name] - FEW * row, row
    return found


@quiet_transformers()
def main() -> None:
    """Measure both and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    roster.ShardActor = StubActor  # type: ignore[attr-defined]
    costs = driver(options.model, options.data, options.rows)
    for what, (start, row) in costs.items():
        print(
            f"{what:50} {start[0]:6.2f} s CPU at the start, {start[1]:6.2f} s wall; "
            f"{1e6 * row[0]:6.2f} us CPU a row, {1e6 * row[1]:6.2f} us wall"
        )
    runs: list[dict[str, float]] = []
    for workers in map(int, filter(None, options.workers.split(","))):
        run = scaling(workers, options.shards, options.seconds)
        first = [*runs, run][0]
        for name in ("shards_per_second", "steady_shards_per_second"):
            run[f"{name}_efficiency"] = run[name] * first["actors"] / first[name] / workers
        runs.append(run)
        print({name: round(value, 3) for name, value in run.items()}, flush=True)
    if options.output:
        driven = {what: np.stack(times).tolist() for what, times in costs.items()}
        options.output.write_text(json.dumps({"driver": driven, "scaling": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
