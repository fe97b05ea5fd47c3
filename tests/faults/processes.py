"""The command's functions in fresh processes, which can be killed at any instant.

A server process has the heavy libraries imported and forks a child in milliseconds; a child has no
state of an earlier one.
"""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.run import run_merge, run_share
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.faults.boundaries import Boundary, watch

_PRELOADED = ["reflogp.pipeline.cli", "reflogp.stages.precompute.stage",
              "reflogp.stages.precompute.score.engines.transformers",
              "reflogp.stages.train.stage",
              "transformers.models.llama.modeling_llama", "transformers.conversion_mapping",
              "pandas", "tests.conftest"]  # fmt: skip
KILLED = -signal.SIGKILL

Command = Callable[[], object]


def precompute(config: PrecomputeConfig) -> Command:
    """`reflogp precompute`, or a share of it."""
    return functools.partial(_precompute, config)


def merge(cache: Path) -> Command:
    """`reflogp merge`."""
    return functools.partial(_merge, cache)


def filtered(cache: Path, output: Path, rules: FilterRules) -> Command:
    """`reflogp filter`."""
    return functools.partial(_filter, cache, output, rules)


def start(function: Callable[..., object], *arguments: Any) -> Any:
    """A fresh process that calls `function`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_alone, args=(function, *arguments))
    process.start()
    return process


def _alone(function: Callable[..., object], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)  # the same bits, however busy the machine is
    function(*arguments)


def finish(process: Any) -> None:
    """Wait for a process that must end well."""
    process.join(300)
    assert process.exitcode == 0, f"exit code {process.exitcode}"


def run(command: Command) -> float:
    """Let a command run to its end in a fresh process; returns the seconds it took."""
    begin = time.monotonic()
    finish(start(command))
    return time.monotonic() - begin


def kill_after(command: Command, seconds: float) -> bool:
    """Start a command and kill it after a while; whether it was still at work."""
    process = start(command)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in {0, KILLED}, f"exit code {process.exitcode}"
    return process.exitcode == KILLED


def kill_at(command: Command, cache: Path, number: int, moment: str) -> bool:
    """Let a command kill itself right before or after its write `number`; whether it got there."""
    process = start(_killing_itself, command, cache, number, moment)
    process.join(300)
    assert process.exitcode in {0, KILLED}, f"exit code {process.exitcode}"
    return process.exitcode == KILLED


def writes(command: Command, cache: Path) -> list[Boundary]:
    """Run a command to its end; every write that it did."""
    context = multiprocessing.get_context("forkserver")
    answers = context.SimpleQueue()
    process = start(_telling, command, cache, answers)
    found: list[Boundary] = answers.get()
    finish(process)
    return found


def _precompute(config: PrecomputeConfig) -> None:
    from tests.conftest import Silent

    run_share(config, Silent())


def _merge(cache: Path) -> None:
    from tests.conftest import Silent

    run_merge(cache, Silent())


def _filter(cache: Path, output: Path, rules: FilterRules) -> None:
    from tests.conftest import Silent

    run_filter(cache, output, rules, Silent())


def _killing_itself(command: Command, cache: Path, number: int, moment: str) -> None:
    def kill(boundary: Boundary) -> None:
        if boundary.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def pass_by(_: Boundary) -> None: ...

    hooks = (kill, pass_by) if moment == "before" else (pass_by, kill)
    watch(cache, *hooks)
    command()


def _telling(command: Command, cache: Path, answers: Any) -> None:
    found: list[Boundary] = []
    watch(cache, found.append, lambda _: None)
    command()
    answers.put(found)
