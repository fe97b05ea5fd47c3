"""Processes under torchrun, with copies of the weights and with shards of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from tests.conftest import Silent
from tests.train.test_resume import killed_at, unfinished

OPTIONS = {
    "batch_size": 2, "accumulation": 4, "epochs": 1, "learning_rate": 1e-3, "warmup": 0,
    "lora_r": 0, "eval_fraction": 0.2, "checkpoint_steps": 1, "keep_checkpoints": 1,
}  # fmt: skip


def torchrun(cache: Path, output: Path, *more: str, number: int = 2) -> subprocess.Popen[str]:
    """`reflogp train` in so many processes, on gloo."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    folder = Path(sys.executable).parent
    command = [
        str(folder / "torchrun"), f"--nproc-per-node={number}", "--no-python", "--standalone",
        str(folder / "reflogp"), "train", f"--cache={cache}", f"--output={output}", *given, *more,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def ended(started: subprocess.Popen[str]) -> Iterator[None]:
    """However the block ends, none of the run's processes is left."""
    try:
        yield
    finally:
        if started.poll() is None:
            launcher = psutil.Process(started.pid)
            for process in [*launcher.children(recursive=True), launcher]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            started.wait()


def trained(started: subprocess.Popen[str]) -> str:
    """What a run that ends well said."""
    with ended(started):
        said = started.communicate(timeout=200)[1]
    assert started.returncode == 0, said[-3000:]
    return said


def killed_after(step: int, started: subprocess.Popen[str], output: Path) -> None:
    """Kill a process of a run, with SIGKILL, when the checkpoint of a step is whole."""
    last = time.monotonic() + 200
    with ended(started):
        while not list(output.glob(f"unfinished-*/checkpoint-{step}/reflogp_checkpoint.json")):
            assert started.poll() is None
            assert time.monotonic() < last
            time.sleep(0.01)
        psutil.Process(started.pid).children()[-1].kill()
        started.communicate(timeout=200)
    assert started.returncode
    assert not (output / "reflogp_run.json").exists()


def metrics(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    # Trainer's epoch counts batches, which are larger with more processes
    return [{name: value for name, value in line.items() if name != "epoch"} for line in lines]


@pytest.fixture(scope="module")
def alone(weighted, tmp_path_factory):
    """The same run in one process."""
    output = tmp_path_factory.mktemp("alone")
    run_train(TrainConfig(cache=weighted, output=output, **OPTIONS), Silent())
    return output


def same_curve(one: Path, other: Path) -> None:
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_give_the_curve_and_the_weights_of_one(weighted, alone, tmp_path, more):
    said = trained(torchrun(weighted, tmp_path, *more))
    assert said.count("parameters on") == 1  # the first process speaks for both
    same_curve(alone, tmp_path)
    assert json.loads((tmp_path / "reflogp_run.json").read_text())["processes"] == 2


def test_a_run_of_one_process_is_gone_on_with_by_two(weighted, alone, tmp_path):
    killed_at(3, TrainConfig(cache=weighted, output=tmp_path, **OPTIONS))
    working = unfinished(tmp_path)
    said = trained(torchrun(weighted, tmp_path))
    assert f"resumed from {working / 'checkpoint-2'}" in said
    same_curve(alone, tmp_path)


@pytest.mark.parametrize("numbers", [(2, 2), (2, 1, 2)])
def test_runs_with_shards_that_are_killed_go_on_in_any_number_of_processes(
    weighted, alone, tmp_path, numbers
):
    for step, number in enumerate(numbers[:-1], 1):
        killed_after(step, torchrun(weighted, tmp_path, "--fsdp", number=number), tmp_path)
    working = unfinished(tmp_path)
    said = trained(torchrun(weighted, tmp_path, "--fsdp", number=numbers[-1]))
    assert f"resumed from {working / 'checkpoint-'}" in said
    same_curve(alone, tmp_path)


def test_a_step_that_the_processes_cannot_share_is_refused(cache, console, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"--accumulation 4.*3 processes.*Give 6"):
        run_train(TrainConfig(cache=cache, output=tmp_path, **OPTIONS), console)


def test_shards_need_a_launcher(cache, console, tmp_path):
    with pytest.raises(InputError, match=r"--fsdp .*torchrun"):
        run_train(TrainConfig(cache=cache, output=tmp_path, fsdp=True, **OPTIONS), console)
