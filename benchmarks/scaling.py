"""Stage one on 1, 2 and 4 Ray actors with an engine whose time is fixed, and what its driver costs.

    python -m benchmarks.scaling MODEL DATA [--workers 1,2,4] [--shards 48] [--seconds 2]
        [--rows 100000] [--output OUTPUT.json]

First the driver: DATA, repeated up to `--rows`, goes through the real planner with MODEL's
tokenizer, then to one actor whose engine takes no time, and is sealed. Prints CPU time of this
process in microseconds a row.

Then efficiency: on a Ray cluster of one raylet an actor on this machine, shards each of which takes
its engine `--seconds`, asleep. So it shows what hand-out and commit cost, and not how cores are
shared. Efficiency is the speed over that of one actor times their number: of the whole run, actors'
start included, and from the first round of shards on.
"""

import argparse
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.overhead import StubScorer, Watch, make_plan, rows
from data_schemas.manifest import Inputs
from pipeline.console import quiet_transformers
from stages.precompute import planning, worker
from stages.precompute.config import PrecomputeConfig
from stages.precompute.finished import survey
from stages.precompute.job import Job
from stages.precompute.planning import Plan
from stages.precompute.ray import roster
from stages.precompute.ray.actor import ShardActor
from stages.precompute.reuse import KnownRows
from stages.precompute.rows import Rows
from stages.precompute.scorers.choose import choose
from stages.precompute.scorers.protocol import Logps, Request
from stages.precompute.scoring import score
from stages.precompute.seal import seal
from stages.precompute.sources import read_source
from stages.precompute.tokenize import TokenizedRow

GPU_SHARD_TOKENS = 4_000_000  # the default where there is a GPU
ROWS, TOKENS = 100, 400  # of a shard; of a row: few enough for one call of the engine


class Sleeper(StubScorer):
    """An engine that takes so many seconds for each call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(self, requests: Sequence[Request]) -> list[Logps]:
        """Constants, after a while."""
        time.sleep(self._seconds)
        return super().score(requests)


class StubActor(ShardActor):
    """The real actor around a stub."""

    def __init__(self, job: Job, known: KnownRows) -> None:
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
    return Job(config, reference, "float32", choose("transformers", reference), inputs)


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
        score(job, plan.shards, KnownRows(cache, ""), console)
        whole = time.perf_counter() - begin
        assert not survey(job, plan.shards).missing
        steady = console.times[-1] - console.times[workers - 1]
        return {
            "actors": workers,
            "seconds": whole,
            "shards_per_second": shards / whole,
            "steady_shards_per_second": (shards - workers) / steady,
        }


class TimedRows(Rows):
    """Rows that note what they take: CPU and wall time in seconds."""

    spent = (0.0, 0.0)

    def tokenized(self, *arguments: Any, **options: Any) -> Iterator[TokenizedRow]:
        """The same rows."""
        rows = super().tokenized(*arguments, **options)
        while True:
            begin = time.process_time(), time.perf_counter()
            row = next(rows, None)
            ended = time.process_time(), time.perf_counter()
            spent = zip(TimedRows.spent, begin, ended, strict=True)
            busy, wall = (before + end - start for before, start, end in spent)
            TimedRows.spent = busy, wall
            if row is None:
                return
            yield row


def cpu(work: Callable[[], Any], rows: int) -> tuple[float, float, Any]:
    """CPU and wall time of this process in microseconds a row, and what `work` returns."""
    cpu_begin, begin = time.process_time(), time.perf_counter()
    result = work()
    ended, cpu_ended = time.perf_counter(), time.process_time()
    return 1e6 * (cpu_ended - cpu_begin) / rows, 1e6 * (ended - begin) / rows, result


def driver(model: Path, data: str, count: int) -> dict[str, tuple[float, float]]:
    """CPU and wall time of each thing that the driver does, in microseconds a row."""
    with tempfile.TemporaryDirectory() as folder, nodes(1) as address:
        cache, console, source = Path(folder) / "cache", Watch(), Path(folder) / "data.jsonl"
        some = [row.data for row in read_source(data) if row.data is not None]
        with source.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in islice(cycle(some), count))
        job = make_job(
            cache, model, str(source), address=address, actors=1, engine_args={"seconds": 0},
            shard_tokens=GPU_SHARD_TOKENS,
        )  # fmt: skip
        planning.load_tokenizer(model, job.config)  # what is imported for it is counted nowhere
        loading = cpu(lambda: planning.load_tokenizer(model, job.config), count)
        planning.Rows = TimedRows  # type: ignore[attr-defined]
        both = cpu(lambda: planning.make_plan(job, console), count)
        tokenizing = [1e6 * seconds / count for seconds in TimedRows.spent]
        plan: Plan = both[2]
        handing = cpu(lambda: score(job, plan.shards, KnownRows(cache, ""), console), count)
        finding = cpu(lambda: survey(job, plan.shards), count)
        sealing = cpu(lambda: seal(job, plan, console), count)
        return {
            "read, normalize, tokenize, row id": (tokenizing[0], tokenizing[1]),
            "plan: sort, write, hash": (
                both[0] - tokenizing[0] - loading[0],
                both[1] - tokenizing[1] - loading[1],
            ),
            "hand out, account (wall: until the actor is done)": handing[:2],
            "find what is finished": finding[:2],
            "seal: read, hash and check all": sealing[:2],
        }


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
    quiet_transformers()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    roster.ShardActor = StubActor  # type: ignore[attr-defined]
    costs = driver(options.model, options.data, options.rows)
    for what, (busy, wall) in costs.items():
        print(f"{what:50} {busy:7.1f} us CPU a row, {wall:7.1f} us wall")
    runs: list[dict[str, float]] = []
    for workers in map(int, filter(None, options.workers.split(","))):
        run = scaling(workers, options.shards, options.seconds)
        first = [*runs, run][0]
        for name in ("shards_per_second", "steady_shards_per_second"):
            run[f"{name}_efficiency"] = run[name] * first["actors"] / first[name] / workers
        runs.append(run)
        print({name: round(value, 3) for name, value in run.items()}, flush=True)
    if options.output:
        options.output.write_text(json.dumps({"driver": costs, "scaling": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
