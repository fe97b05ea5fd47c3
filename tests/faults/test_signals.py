"""SIGTERM, SIGHUP and Ctrl-C: one line, the exit code, nothing left behind, and it goes on."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from reflogp.pipeline.cli import main
from tests.faults import processes
from tests.faults.boundaries import Boundary, Hook, watch
from tests.faults.conftest import THOROUGH, require_equal
from tests.snapshots import contents

EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NAMES: dict[int, str] = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
}


def command(arguments: list[str], folder: Path, hook: Hook) -> None:
    """The command in this process, with stderr in a file, and `hook` before each of its writes."""
    descriptor = os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    sys.argv = ["reflogp", *arguments]
    watch(folder, hook, lambda _: None)
    main()


def _nothing(_: Boundary) -> None: ...


def signals_itself(at: int, *numbers: int) -> Hook:
    """Sends signals to the process that it is called in, at the write `at`."""
    return functools.partial(_signal_at, at, numbers)


def _signal_at(at: int, numbers: tuple[int, ...], boundary: Boundary) -> None:
    if boundary.number == at:
        for number in numbers:
            os.kill(os.getpid(), number)


def finished(arguments: list[str], folder: Path, hook: Hook = _nothing) -> tuple[int, list[str]]:
    """Run a command to its end in a fresh process; its exit code, and what it said."""
    process = processes.start(command, arguments, folder, hook)
    process.join(300)
    return process.exitcode, (folder / "stderr.txt").read_text().splitlines()


def require_stopped(code: int, said: list[str], number: int, kept: str = "") -> None:
    """It ended as the signal asks: the exit code, and one line that says what is kept."""
    assert code == EXIT_CODES[number], said
    assert said[-1].startswith(f"stopped by {NAMES[number]}. "), said
    assert "the same command" in said[-1]
    assert kept in said[-1]
    assert sum("stopped by" in line for line in said) == 1
    assert not any("Traceback" in line for line in said)


def scoring(config, cache: Path) -> list[str]:
    given = {"reference": config.reference, "data": config.data, "cache": str(cache),
             "engine": "transformers", "max-length": "192", "shard-tokens": "3000",
             "verify-sample": "0"}  # fmt: skip
    return ["precompute", *(f"--{name}={value}" for name, value in given.items())]


def test_stage_one_ends_at_any_write_and_goes_on_from_there(configured, sound, tmp_path):
    source = random.Random(6)
    for number in EXIT_CODES:
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = scoring(configured(folder), folder / "cache")
        for at in source.sample(range(40), 8 if THOROUGH else 2):
            code, said = finished(arguments, folder, signals_itself(at, number))
            require_stopped(code, said, number, "kept")
            assert not [*folder.rglob("*.tmp")]
        code, said = finished(arguments, folder)
        assert code == 0, said
        require_equal(folder / "cache", sound)


@pytest.mark.parametrize("what", ["export", "diagnose", "filter"])
def test_what_writes_a_result_leaves_the_earlier_one_or_the_new_one(what, cache, tmp_path):
    given = {
        "export": ["export", str(cache), "--output", str(tmp_path / "out"), "--overwrite"],
        "diagnose": ["diagnose", str(cache), "--html", str(tmp_path / "page.html")],
        "filter": ["filter", str(cache), "--output", str(tmp_path / "out"), "--drop-duplicates"],
    }[what]
    other = {"export": ["--format=trl"], "diagnose": ["--png", str(tmp_path / "png")],
             "filter": ["--max-similarity=0.5"]}[what]  # fmt: skip
    assert finished(given, tmp_path)[0] == 0
    (tmp_path / "stderr.txt").unlink()
    before = contents(tmp_path)
    code, said = finished([*given, *other], tmp_path, signals_itself(3, signal.SIGTERM))
    require_stopped(code, said, signal.SIGTERM)
    (tmp_path / "stderr.txt").unlink()
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith((".tmp", ".partial"))]


def test_a_signal_that_is_ignored_stays_so(configured, sound, tmp_path):
    """As nohup ignores SIGHUP."""
    arguments = scoring(configured(tmp_path), tmp_path / "cache")
    process = processes.start(_under_nohup, arguments, tmp_path)
    process.join(300)
    assert process.exitcode == 0
    require_equal(tmp_path / "cache", sound)


def _under_nohup(arguments: list[str], folder: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command(arguments, folder, signals_itself(4, signal.SIGHUP))


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_while_the_command_is_imported_ends_it_in_a_line(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "reflogp", "inspect", str(tmp_path)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not _is_listening(process.pid):
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=100)[1].splitlines()
    require_stopped(process.returncode, said, number)


def _is_listening(pid: int) -> bool:
    """Whether it handles SIGALRM, the last one. Ctrl-C Python itself handles from its start."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1]
    return bool(int(caught, 16) >> (signal.SIGALRM - 1) & 1)


def training(cache: Path, output: Path, *more: str) -> list[str]:
    given = {"cache": cache, "output": output, "batch-size": 2, "accumulation": 2, "epochs": 2,
             "learning-rate": 1e-2, "warmup": 0, "eval-fraction": 0.2, "lora-dropout": 0.2,
             "checkpoint-steps": 3}  # fmt: skip
    return ["train", *(f"--{name}={value}" for name, value in given.items()), *more]


def training_stopped(arguments: list[str], folder: Path, step: int, *numbers: int) -> None:
    """The command, which gets signals when the metrics of a step are written."""
    from reflogp.stages.train.loop.callbacks import MetricsFile

    real = MetricsFile.on_log

    def on_log(self, args, state, control, logs=None, **more):
        real(self, args, state, control, logs=logs, **more)
        if state.global_step == step and "loss" in (logs or {}):
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(1.1)  # what comes sooner is the same signal

    setattr(MetricsFile, "on_log", on_log)  # noqa: B010 - for mypy it is no assignment
    command(arguments, folder, _nothing)


def stopped_at(arguments, folder, step, *numbers) -> tuple[int, list[str]]:
    process = processes.start(training_stopped, arguments, folder, step, *numbers)
    process.join(300)
    return process.exitcode, (folder / "stderr.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert finished(training(cache, folder / "run"), folder)[0] == 0
    return folder / "run"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (4, signal.SIGINT)])
def test_stage_two_makes_a_checkpoint_and_ends_as_if_nothing_had_been(
    cache, whole, tmp_path, step, number
):
    arguments = training(cache, tmp_path / "run")
    code, said = stopped_at(arguments, tmp_path, step - 1, number)  # in the middle of `step`
    require_stopped(code, said, number, f"checkpoint-{step} is kept")
    code, said = finished(arguments, tmp_path)
    assert code == 0, said
    assert any(f"resumed from {tmp_path}" in line and f"checkpoint-{step}" in line for line in said)
    assert metrics(tmp_path / "run") == metrics(whole)
    weights = [load_file(run / "adapter_model.safetensors") for run in (whole, tmp_path / "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_second_signal_ends_stage_two_at_once(cache, tmp_path):
    arguments = training(cache, tmp_path / "run", "--checkpoint-steps=0")
    code, said = stopped_at(arguments, tmp_path, 2, signal.SIGTERM, signal.SIGTERM)
    assert code == 143
    assert not any("Traceback" in line for line in said)
    assert not [*tmp_path.rglob("checkpoint-*")]


def test_without_grace_stage_two_ends_with_what_it_has(cache, tmp_path):
    arguments = training(cache, tmp_path / "run", "--grace-seconds=0")
    code, said = stopped_at(arguments, tmp_path, 5, signal.SIGHUP)
    require_stopped(code, said, signal.SIGHUP, "checkpoint-3 is kept")
    assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-3"]


def begun(arguments: list[str], folder: Path, until: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """A command in a process group of its own, once `until` says so."""
    with (folder / "stderr.txt").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "reflogp", *arguments], stderr=file, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )  # fmt: skip
    while not until():
        assert process.poll() is None, (folder / "stderr.txt").read_text()
        time.sleep(0.01)
    return process


def require_gone(process: subprocess.Popen[bytes], send: Callable[[], None]) -> int:
    """Its exit code; none of the processes that it started is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    send()
    code = process.wait(100)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    return code


@pytest.mark.parametrize("group", [False, True] if THOROUGH else [True])
def test_a_sweep_passes_the_signal_on_and_its_run_makes_a_checkpoint(cache, tmp_path, group):
    arguments = [
        "sweep",
        *training(cache, tmp_path / "sweep", "--epochs=200")[1:],
        "--set=seed=1,2",
    ]
    found = tmp_path / "sweep" / "seed=1"
    process = begun(arguments, tmp_path, lambda: bool([*found.rglob("metrics.jsonl")]))
    send = functools.partial(os.killpg if group else os.kill, process.pid, signal.SIGTERM)
    code = require_gone(process, send)
    said = (tmp_path / "stderr.txt").read_text().splitlines()
    require_stopped(code, said, signal.SIGTERM, "is kept, and the same command resumes")
    assert [*found.rglob("reflogp_checkpoint.json")]
    assert not (tmp_path / "sweep" / "seed=2").exists()


@pytest.mark.skipif(not THOROUGH, reason="each engine imports torch again; make faults")
@pytest.mark.parametrize("number", EXIT_CODES)
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_two_engines_end_with_the_command(configured, tmp_path, number, group):
    arguments = [*scoring(configured(tmp_path), tmp_path / "cache"), "--engines=2"]
    shards = tmp_path / "cache"
    process = begun(arguments, tmp_path, lambda: bool([*shards.glob("shard-*")]))
    send = functools.partial(os.killpg if group else os.kill, process.pid, number)
    code = require_gone(process, send)
    said = (tmp_path / "stderr.txt").read_text().splitlines()
    require_stopped(code, said, number, "Finished shards are kept")
