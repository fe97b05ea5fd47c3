"""Planned shards -> finished shards: with one engine in this process, several, or on a cluster.

Several engines run in one process each, with their own GPUs or CPU cores, and take the next shard
of the plan when they are free. Scoring has no state between shards, so they share nothing else.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard
from reflogp.stages.precompute.score.account import Account
from reflogp.stages.precompute.score.engines.choose import gpus_of_an_engine
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.score.worker import Done, Worker
from reflogp.stages.progress import Console
from reflogp.stages.signals import ending, held_back, keeping

_KEPT = "Finished shards are kept, and the same command continues from there."
_END_SECONDS = 10.0  # for an engine's process to end its own processes and release memory
_PATIENCE_SECONDS = 1.0  # between two checks that the engines are alive


def score(job: Job, missing: list[PlannedShard], known: ScoredRows, console: Console) -> None:
    """Score shards and write them. A shard is synced to disk while the next one is scored.

    Args:
        job: the model, engine and cache.
        missing: the shards to score.
        known: rows that were scored before.
        console: for progress.

    Raises:
        ReflogpError: an engine does not start, or dies.
    """
    account = Account(job)
    with keeping(lambda: _KEPT):
        _way(job, missing)(job, missing, known, account, console)
    account.end()


def _way(job: Job, missing: list[PlannedShard]) -> Callable[..., None]:
    if job.config.backend == "ray":
        from reflogp.stages.precompute.score.ray.scoring import score_on_ray

        return score_on_ray
    return _score_here if min(job.config.engines, len(missing)) == 1 else _score_in_processes


def _score_here(
    job: Job, missing: list[PlannedShard], known: ScoredRows, account: Account, console: Console
) -> None:
    worker = Worker(job, known)
    total = sum(planned.tokens for planned in missing)
    try:
        with console.track("scoring", total, "tokens") as advance:
            for done in worker.score(missing, advance, console.say):
                account.add(tokens=done.tokens, seconds=done.seconds)
    except RuntimeError as error:  # torch and vLLM raise it if a device fails or is out of memory
        raise ReflogpError(
            f"scoring failed: {error}. Finished shards are kept: run the command again."
        ) from error
    finally:
        worker.close()


def _score_in_processes(
    job: Job, missing: list[PlannedShard], known: ScoredRows, account: Account, console: Console
) -> None:
    engines = min(job.config.engines, len(missing))
    # fork is not safe with threads, or with a CUDA context
    context = multiprocessing.get_context("spawn")
    todo = _Tasks(context, missing, engines)
    answers: Any = context.Queue()
    processes: list[Any] = []
    try:
        for devices in _devices(engines, gpus_of_an_engine(job.config)):
            process = context.Process(target=_work, args=(job, known, todo, answers))
            with _environment(devices), held_back():
                process.start()
            processes.append(process)
        console.say(f"scoring with {engines} engines")
        finished = 0
        with console.track("scoring", sum(p.tokens for p in missing), "tokens") as advance:
            while finished < len(missing):
                answer = _next(answers, processes)
                if isinstance(answer, Done):
                    finished += 1
                    # engines run in parallel, so each counts for a part of the elapsed time
                    account.add(tokens=answer.tokens, seconds=answer.seconds / engines)
                else:
                    advance(answer)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_END_SECONDS)
            process.kill()
            process.join()


def _work(job: Job, known: ScoredRows, todo: "_Tasks", answers: Any) -> None:
    """An engine's process: takes shards from `todo`, puts results and errors into `answers`."""
    with ending(_nobody):
        _work_until_stopped(job, known, todo, answers)


def _work_until_stopped(job: Job, known: ScoredRows, todo: "_Tasks", answers: Any) -> None:
    try:
        worker = Worker(job, known)
        try:
            for done in worker.score(todo, lambda n: answers.put(float(n)), _nobody):
                answers.put(done)
        finally:
            worker.close()
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it
        plain = isinstance(error, ReflogpError | OSError)
        answers.put(error if plain else ReflogpError(repr(error)))


def _nobody(_: str) -> None:
    """Ignore messages: an engine's process reports only results."""


class _Tasks:
    """The shards that engines in their own processes share."""

    def __init__(self, context: Any, shards: list[PlannedShard], engines: int) -> None:
        self._queue = context.Queue()
        self._left = context.Value("q", len(shards))
        self._engines = engines
        for task in [*shards, *[None] * engines]:
            self._queue.put(task)

    def __iter__(self) -> Iterator[PlannedShard | None]:
        """The next shards to score, until there are no more or the parent has ended.

        None after a shard means that there is only one more for each engine, so that none of them
        should take another one before it needs it.
        """
        parent = multiprocessing.parent_process()
        while parent is None or parent.is_alive():
            try:
                task: PlannedShard | None = self._queue.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                continue
            if task is None:
                return
            with self._left:
                self._left.value -= 1
                scarce = self._left.value <= self._engines
            yield task
            if scarce:
                yield None


def _next(answers: Any, processes: list[Any]) -> Any:
    """The next answer of any engine.

    Raises:
        ReflogpError: an engine failed, or was killed.
        OSError: an engine could not read or write a file.
    """
    while True:
        try:
            answer = answers.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            killed = [process for process in processes if process.exitcode not in (None, 0)]
            if killed:
                raise ReflogpError(
                    f"the process of an engine died (exit code {killed[0].exitcode}), often "
                    "because it ran out of memory. Run the command again, perhaps with fewer "
                    "--engines; finished shards are kept."
                ) from None
            continue
        if isinstance(answer, Exception):
            raise answer
        return answer


def _devices(engines: int, each: int) -> Iterator[dict[str, str]]:
    """The environment of each engine, which assigns it its own GPUs (`each`) or CPU cores."""
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
        if len(gpus) < engines * each:
            raise ReflogpError(
                f"--engines {engines} needs {engines * each} GPUs, {each} for each engine; "
                f"there are {len(gpus)}."
            )
        for first in range(0, engines * each, each):
            yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + each])}
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
    """Add `values` to the environment of processes that are started in the block."""
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
