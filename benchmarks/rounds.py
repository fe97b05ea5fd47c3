"""Contenders in processes of their own, run in turn.

A round runs every contender once, so that a machine whose speed drifts treats them alike.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.pairs import Pairs

_ROOT = Path(__file__).parents[1]
_STOP_SECONDS = 60

Results = dict[str, list[dict[str, float]]]
"""Of each contender, what each of its runs measured."""


class ContenderError(Exception):
    """A contender ended before its time; why stands on standard error."""


@dataclass(frozen=True)
class Arena:
    """What all contenders of a benchmark have in common.

    Attributes:
        model: folder of the checkpoint.
        pairs: what to score.
        folder: for files between the processes.
        settings: more arguments of vllm.LLM, for the contenders that are vLLM.
    """

    model: Path
    pairs: Pairs
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A contender in a process of its own, which ends with the block."""

    def __init__(self, name: str, arena: Arena) -> None:
        """Start it and wait until it is loaded.

        Raises:
            ContenderError: it ended early.
        """
        self.name = name
        self._device_mib = 0.0
        file = arena.folder / f"{name}.json"
        file.write_text(json.dumps(arena.pairs))
        arguments = [name, str(arena.model), str(file), json.dumps(arena.settings)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _python_path(arena.folder)},
        )
        self._ask("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def run(self, pairs: int) -> dict[str, float]:
        """One run over the first pairs: seconds, and peak memory on the host and on the GPU.

        Raises:
            ContenderError: it ended early.
        """
        return dict(json.loads(self._ask(f"{pairs}\n"))) | {"device_mib": self._device_mib}

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # What more of the GPU's memory is in use afterwards is this contender's: they take turns,
        # and an allocator keeps the most that it ever needed. Process ids may be hidden there.
        before = _device_mib()
        with suppress(BrokenPipeError):  # it has ended, and does not answer
            self._process.stdin.write(question)
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(f"the contender {self.name} ended early; see above")
        self._device_mib += _device_mib() - before
        return line


def best_of(names: Sequence[str], arena: Arena, pairs: int) -> str:
    """The fastest of variants of one contender, each tried alone on the first pairs.

    The first of them if none ran: it will be reported as the contender that ended early.
    """
    if len(names) == 1:
        return names[0]
    speeds: dict[str, float] = {}
    for name in names:
        try:
            with Worker(name, arena) as worker:
                worker.run(1)
                speeds[name] = pairs / worker.run(pairs)["seconds"]
        except ContenderError as error:  # a batch that does not fit into memory, say
            print(error, file=sys.stderr)
    print({name: round(speed, 2) for name, speed in speeds.items()}, "pairs/s", flush=True)
    return max(names, key=lambda name: speeds.get(name, 0.0))


def rounds(names: Sequence[str], arena: Arena, number: int, warm_up: int) -> Iterator[Results]:
    """Run all contenders in turn, each `number` times; all results so far after each round.

    A contender that ends early is told of and is not among the results.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        results: Results = {}
        for name in names:
            try:
                workers[name] = stack.enter_context(Worker(name, arena))
                workers[name].run(warm_up)  # kernels and allocators; counted nowhere
                results[name] = []
            except ContenderError as error:
                print(error, file=sys.stderr)
        for turn in range(1, number + 1):
            for name in list(results):
                try:
                    results[name].append(workers[name].run(len(arena.pairs)))
                except ContenderError as error:
                    print(error, file=sys.stderr)
                    del results[name]
                    continue
                print(f"round {turn}: {name} {results[name][-1]}", flush=True)
            yield results


def _device_mib() -> float:
    """GPU memory in use by all processes together, in MiB; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _python_path(folder: Path) -> str:
    """PYTHONPATH under which vLLM finds our plugin, also where reflogp is not installed.

    vLLM looks for the entry points of installed distributions. Where there is none of ours, one is
    made in `folder`: two small files, gone with it.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    group = "vllm.general_plugins"
    if not any(point.name == "reflogp" for point in entry_points(group=group)):
        made = folder / "plugin" / "reflogp-0.dist-info"
        made.mkdir(parents=True, exist_ok=True)
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: reflogp\nVersion: 0\n")
        target = "reflogp.stages.precompute.score.engines.vllm_plugin:register"
        (made / "entry_points.txt").write_text(f"[{group}]\nreflogp = {target}\n")
        paths.append(str(made.parent))
    return os.pathsep.join(paths)
