"""Training in several processes, with copies of the weights and with shards of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.cli import main
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.checkpoints import make_tokenizer
from tests.conftest import Silent
from tests.faults import processes as forked
from tests.train.families import tiny
from tests.train.test_resume import killed_at, unfinished

OPTIONS = {
    "batch_size": 2, "accumulation": 4, "epochs": 1, "learning_rate": 1e-3, "warmup": 0,
    "lora_r": 0, "eval_fraction": 0.2, "checkpoint_steps": 1, "keep_checkpoints": 1,
}  # fmt: skip


def arguments(cache: Path, output: Path, *more: str) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return ["train", f"--cache={cache}", f"--output={output}", *given, *more]


def started(cache: Path, output: Path, *more: str, number: int = 2) -> list[Any]:
    """`reflogp train` in so many processes, on gloo, as torchrun starts them.

    They are forked, which spares each the imports.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    said(output).unlink(missing_ok=True)
    return [
        forked.start(
            _train, arguments(cache, output, *more), said(output),
            common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in range(number)
    ]  # fmt: skip


def said(output: Path) -> Path:
    """Where all processes of a run say what they do."""
    return output.with_name(f"{output.name}.stderr")


def _train(arguments: list[str], said: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["reflogp", *arguments]
    main()


@contextmanager
def ended(processes: list[Any]) -> Iterator[None]:
    """However the block ends, none of the run's processes is left."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def trained(processes: list[Any], output: Path) -> str:
    """What a run that ends well said."""
    with ended(processes):
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
    text = said(output).read_text()
    assert codes == [0] * len(codes), text[-3000:]
    return text


def killed_after(step: int, processes: list[Any], output: Path) -> None:
    """Kill a run, with SIGKILL, when the checkpoint of a step is whole."""
    last = time.monotonic() + 300
    with ended(processes):
        while not list(output.glob(f"unfinished-*/checkpoint-{step}/reflogp_checkpoint.json")):
            assert {process.exitcode for process in processes} == {None}
            assert time.monotonic() < last
            time.sleep(0.01)
    assert {process.exitcode for process in processes} == {-signal.SIGKILL}
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
    same_weights(one, other)


def same_weights(one: Path, other: Path) -> None:
    weights, others = (load_file(next(path.glob("*model.safetensors"))) for path in (one, other))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_give_the_curve_and_the_weights_of_one(weighted, alone, tmp_path, more):
    output = tmp_path / "run"
    text = trained(started(weighted, output, *more), output)
    assert text.count("parameters on") == 1  # the first process speaks for both
    same_curve(alone, output)
    assert json.loads((output / "reflogp_run.json").read_text())["processes"] == 2


@pytest.fixture(scope="module")
def windowed(few_preferences, tmp_path_factory):
    """A cache of a Gemma 3 with windows of 16 tokens, which every sequence exceeds."""
    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("windowed")
    policy = tiny("gemma3_text", vocab_size=len(tokenizer))
    policy.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = PrecomputeConfig(
        reference=str(folder / "model"), data=str(few_preferences), cache=folder / "cache",
        engine="transformers", dtype="float32", max_length=192, verify_sample=4,
    )  # fmt: skip
    run_precompute(config, Silent())
    return folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"lora_r": 4}, {"fsdp": True}], ids=["ddp, lora", "fsdp"])
def test_two_processes_share_prompts_within_windows(windowed, tmp_path, more):
    options = OPTIONS | more | {"gradient_checkpointing": True}
    single = {name: value for name, value in options.items() if name != "fsdp"}
    alone, output = tmp_path / "alone", tmp_path / "run"
    run_train(TrainConfig(cache=windowed, output=alone, layout="separate", **single), Silent())
    switches = ["--fsdp"] if "fsdp" in more else ["--lora-r=4"]
    text = trained(
        started(windowed, output, "--layout=shared", "--gradient-checkpointing", *switches), output
    )
    assert "its prompt computed once" in text
    for ours, theirs in zip(metrics(alone), metrics(output), strict=True):
        # of the first step, the signs of rewards are those of rounding
        names = {"loss", "grad_norm", "eval_loss"} & ours.keys()
        assert [ours[name] for name in names] == pytest.approx(
            [theirs[name] for name in names], rel=1e-3, abs=1e-5
        )
    same_weights(alone, output)


@pytest.mark.slow
def test_torchrun_starts_them(weighted, alone, tmp_path):
    folder = Path(sys.executable).parent
    command = [
        str(folder / "torchrun"), "--nproc-per-node=2", "--no-python", "--standalone",
        str(folder / "reflogp"), *arguments(weighted, tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True)
    same_curve(alone, tmp_path)


def test_a_run_of_one_process_is_gone_on_with_by_two(weighted, alone, tmp_path):
    output = tmp_path / "run"
    killed_at(3, TrainConfig(cache=weighted, output=output, **OPTIONS))
    working = unfinished(output)
    text = trained(started(weighted, output), output)
    assert f"resumed from {working / 'checkpoint-2'}" in text
    same_curve(alone, output)


@pytest.mark.parametrize("numbers", [(2, 2), pytest.param((2, 1, 2), marks=pytest.mark.slow)])
def test_runs_with_shards_that_are_killed_go_on_in_any_number_of_processes(
    weighted, alone, tmp_path, numbers
):
    output = tmp_path / "run"
    for step, number in enumerate(numbers[:-1], 1):
        killed_after(step, started(weighted, output, "--fsdp", number=number), output)
    working = unfinished(output)
    text = trained(started(weighted, output, "--fsdp", number=numbers[-1]), output)
    assert f"resumed from {working / 'checkpoint-'}" in text
    same_curve(alone, output)


def test_a_step_that_the_processes_cannot_share_is_refused(cache, console, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"--accumulation 4.*3 processes.*Give 6"):
        run_train(TrainConfig(cache=cache, output=tmp_path, **OPTIONS), console)


def test_shards_need_a_launcher(cache, console, tmp_path):
    with pytest.raises(InputError, match=r"--fsdp .*torchrun"):
        run_train(TrainConfig(cache=cache, output=tmp_path, fsdp=True, **OPTIONS), console)
