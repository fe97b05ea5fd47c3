"""Planned shards -> finished shards: by one engine in this process, or by several at a time.

Several engines, each in a process of its own with its own GPUs (or CPU cores), take shards from one
plan as they get free: scoring has no state between shards, so nothing else need be shared.
"""

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.cache_shard import read_shard
from data_schemas.errors import InputError, ReflogpError
from data_schemas.manifest import Shard
from stages.precompute.job import Job
from stages.precompute.plan import PlannedShard, read_plan
from stages.precompute.scorers.choose import start
from stages.precompute.scorers.protocol import Scorer
from stages.precompute.shards import describe_shard, score_table, token_counts, write_shard
from stages.progress import Console

_PATIENCE_SECONDS = 1.0  # between two looks at whether the engines are still alive


@dataclass(frozen=True)
class ScoredShard:
    """A finished shard, and what the manifest and the quarantine need to know of it.

    Attributes:
        problems: source row and what is wrong, of rows whose scores cannot be right.
    """

    number: int
    shard: Shard
    tokens: dict[str, int]
    truncated: int
    problems: list[tuple[int, str]]


@dataclass(frozen=True)
class Scored:
    """All shards, in the order of the plan.

    Attributes:
        method: how the engine gave log-probs, and on what device.
        seconds: from the first shard to the last, without the engines' start.
        tokens: sequence tokens that were scored in that time.
    """

    shards: list[ScoredShard]
    device: str
    method: str
    seconds: float
    tokens: int


Tasks = list[tuple[int, PlannedShard]]


def score(job: Job, plan: list[PlannedShard], console: Console) -> Scored:
    """Score every shard of the plan that is not finished yet.

    A finished shard is a file of this job's name with exactly the planned rows: files appear whole
    or not at all, so one that a killed run left behind is as good as new.

    Raises:
        ReflogpError: an engine does not start, or dies.
    """
    finished = [found for task in enumerate(plan) if (found := _finished(job, *task))]
    numbers = {found.number for found in finished}
    tasks = [task for task in enumerate(plan) if task[0] not in numbers]
    if finished:
        console.say(f"{len(finished)} of {len(plan)} shards are there from an earlier run")
    if not tasks:  # only the seal was missing; one shard again tells how it was scored
        finished, tasks = finished[1:], [(finished[0].number, plan[finished[0].number])]
    run = _score_here if min(job.config.engines, len(tasks)) == 1 else _score_in_processes
    scored = run(job, tasks, console)
    return replace(scored, shards=sorted([*finished, *scored.shards], key=lambda s: s.number))


def _finished(job: Job, number: int, planned: PlannedShard) -> ScoredShard | None:
    path = job.shard_path(number)
    if not path.is_file():
        return None
    try:
        table = read_shard(path)
    except InputError:
        return None
    if table.column("row_id") != read_plan(planned).column("row_id"):
        return None
    return _account(number, table, describe_shard(table, path), [])


def _score_here(job: Job, tasks: Tasks, console: Console) -> Scored:
    scorer = start(job.engine, job.reference, job.dtype, job.config)
    console.say(f"scoring with {scorer.method}")
    begin = time.monotonic()
    try:
        with console.track("scoring", _tokens(tasks), "tokens") as advance:
            shards = [_score_shard(job, *task, scorer, advance) for task in tasks]
        seconds = time.monotonic() - begin
    except RuntimeError as error:  # what torch and vLLM raise when a device fails or is full
        raise ReflogpError(
            f"scoring failed: {error}. Finished shards are kept: run the command again."
        ) from error
    finally:
        scorer.close()
    return Scored(shards, scorer.device, scorer.method, seconds, _tokens(tasks))


def _score_shard(
    job: Job,
    number: int,
    planned: PlannedShard,
    scorer: Scorer,
    advance: Callable[[float], None],
) -> ScoredShard:
    table, problems = score_table(read_plan(planned), scorer, advance)
    return _account(number, table, write_shard(table, job.shard_path(number)), problems)


def _account(
    number: int, table: pa.Table, shard: Shard, problems: list[tuple[int, str]]
) -> ScoredShard:
    prompt, chosen, rejected = (
        table.column(f"{name}_truncated") for name in ("prompt", "chosen", "rejected")
    )
    return ScoredShard(
        number=number,
        shard=shard,
        tokens=token_counts([table]),
        truncated=pc.sum(pc.or_(pc.or_(prompt, chosen), rejected)).as_py() or 0,
        problems=problems,
    )


def _score_in_processes(job: Job, tasks: Tasks, console: Console) -> Scored:
    engines = min(job.config.engines, len(tasks))
    # fork would copy a process with threads and, on a GPU, a CUDA context
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    answers: Any = context.Queue()
    for task in [*tasks, *[None] * engines]:
        todo.put(task)
    processes: list[Any] = []
    try:
        for devices in _devices(engines, job.config.tensor_parallel_size):
            process = context.Process(target=_work, args=(job, todo, answers))
            with _environment(devices):
                process.start()
            processes.append(process)
        # the clock starts with the first engine that is ready
        device, method = _next(answers, processes)
        console.say(f"scoring with {engines} engines, {method}")
        begin = time.monotonic()
        shards: list[ScoredShard] = []
        with console.track("scoring", _tokens(tasks), "tokens") as advance:
            while len(shards) < len(tasks):
                answer = _next(answers, processes)
                if isinstance(answer, ScoredShard):
                    shards.append(answer)
                elif isinstance(answer, float):
                    advance(answer)
        seconds = time.monotonic() - begin
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return Scored(shards, device, method, seconds, _tokens(tasks))


def _work(job: Job, todo: Any, answers: Any) -> None:
    """An engine's process: shards out of `todo`, results, progress and errors into `answers`."""
    try:
        scorer = start(job.engine, job.reference, job.dtype, job.config)
        try:
            answers.put((scorer.device, scorer.method))
            while (task := _next_task(todo)) is not None:
                number, planned = task
                done = _score_shard(job, number, planned, scorer, lambda n: answers.put(float(n)))
                answers.put(done)
        finally:
            scorer.close()
    except Exception as error:  # noqa: BLE001 - it crosses to the parent, which raises it
        answers.put(error if isinstance(error, ReflogpError) else ReflogpError(repr(error)))


def _next_task(todo: Any) -> tuple[int, PlannedShard] | None:
    """The next shard to score; None when there is no more, or nobody left who waits for it."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            task: tuple[int, PlannedShard] | None = todo.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            continue
        return task
    return None


def _next(answers: Any, processes: list[Any]) -> Any:
    """The next answer of any engine; raises what an engine raised, and when one was killed."""
    while True:
        try:
            answer = answers.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            killed = [process for process in processes if process.exitcode not in (None, 0)]
            if killed:
                raise ReflogpError(
                    f"an engine's process died (exit code {killed[0].exitcode}), "
                    "often for want of memory. Run the command again, perhaps with fewer "
                    "--engines; finished shards are kept."
                ) from None
            continue
        if isinstance(answer, ReflogpError):
            raise answer
        return answer


def _devices(engines: int, tensor_parallel_size: int) -> Iterator[dict[str, str]]:
    """The environment of each engine, which gives it GPUs, or else CPU cores, of its own."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
        if len(gpus) < engines * tensor_parallel_size:
            raise ReflogpError(
                f"--engines {engines} with --tensor-parallel-size {tensor_parallel_size} needs "
                f"{engines * tensor_parallel_size} GPUs; there are {len(gpus)}."
            )
        for first in range(0, engines * tensor_parallel_size, tensor_parallel_size):
            yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + tensor_parallel_size])}
        return
    cores = sorted(os.sched_getaffinity(0))
    for number in range(engines):
        own = cores[number::engines] or cores[:1]
        yield {
            "OMP_NUM_THREADS": str(len(own)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, own)),
        }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """`values` in the environment of a process that is started within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tokens(tasks: Tasks) -> int:
    return sum(planned.tokens for _, planned in tasks)
