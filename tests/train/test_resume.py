"""A run that is killed goes on from its last whole checkpoint and ends as if nothing had been."""

import json
import multiprocessing
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from reflogp.data_schemas.errors import ReflogpError
from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result import checkpoints
from tests.conftest import Silent
from tests.faults.boundaries import Boundary, watch


def settings(cache, output, **options) -> TrainConfig:
    given = {
        "batch_size": 2, "accumulation": 2, "epochs": 2, "learning_rate": 1e-2, "warmup": 0,
        "checkpoint_steps": 3, "eval_fraction": 0.2, "lora_dropout": 0.2,
    }  # fmt: skip
    return TrainConfig(cache=cache, output=output, **(given | options))


def train_and_die(config: TrainConfig, step: int) -> None:
    """Train, and be killed in the middle of writing the checkpoint of `step`."""
    torch.set_num_threads(1)

    def kill(boundary: Boundary) -> None:
        if f"/checkpoint-{step}/.reflogp_checkpoint.json" in boundary.path:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(config.output, kill, lambda _: None)
    run_train(config, Silent())


def killed_at(step, config):
    process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(config, step))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def unfinished(output):
    """The folder in which the run works until its result is whole."""
    [folder] = output.glob("unfinished-*")
    return folder


def metrics(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "epoch"} for line in lines]


@pytest.mark.parametrize("rows", ["cache", pytest.param("masked", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_curve_and_the_same_weights(
    rows, request, console, tmp_path
):
    cache = request.getfixturevalue(rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_train(settings(cache, tmp_path / "whole"), console)
    config = settings(cache, tmp_path / "killed")
    killed_at(6, config)
    assert sorted(p.name for p in unfinished(config.output).glob("checkpoint-*")) == [
        "checkpoint-3", "checkpoint-6",
    ]  # fmt: skip
    assert sorted(p.name for p in config.output.iterdir()) == [
        "reflogp.json", unfinished(config.output).name,
    ]  # fmt: skip
    record = run_train(config, console)
    torch.set_num_threads(threads)
    assert record.resumed_from == 3  # the one of step 6 was not whole
    assert metrics(config.output) == metrics(tmp_path / "whole")
    weights = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(config.output.glob("unfinished-*"))


def test_a_checkpoint_of_other_settings_or_without_leave_is_not_gone_on_from(
    cache, console, tmp_path
):
    killed_at(6, settings(cache, tmp_path))
    other = run_train(settings(cache, tmp_path, beta=0.2, keep_checkpoints=2), console)
    assert other.resumed_from is None
    assert len(list(tmp_path.glob("checkpoint-*/reflogp_checkpoint.json"))) == 2
    assert not list(tmp_path.glob("unfinished-*"))
    (tmp_path / "reflogp_run.json").unlink()
    again = run_train(settings(cache, tmp_path, beta=0.2, resume=False), console)
    assert again.resumed_from is None
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_with_a_file_cut_short_is_not_whole(tmp_path):
    for step in (3, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"0123456789")
        state = TrainerState(global_step=step, is_world_process_zero=True)
        arguments = TrainingArguments(str(tmp_path), use_cpu=True)
        checkpoints.SealCheckpoints("this").on_save(arguments, state, TrainerControl())
    found = checkpoints.whole_checkpoints(tmp_path, "this")
    assert [folder.name for folder in found] == ["checkpoint-3", "checkpoint-6"]
    assert checkpoints.whole_checkpoints(tmp_path, "other") == []
    (tmp_path / "checkpoint-6" / "optimizer.pt").write_bytes(b"01234")
    assert checkpoints.whole_checkpoints(tmp_path, "this") == [tmp_path / "checkpoint-3"]


def test_a_run_that_is_not_to_be_gone_on_with_begins_anew(cache, console, tmp_path):
    config = settings(cache, tmp_path)
    killed_at(6, config)
    assert run_train(config.model_copy(update={"resume": False}), console).resumed_from is None


def test_a_run_that_diverges_names_the_last_good_state(cache, console, tmp_path):
    with pytest.raises(ReflogpError, match=r"step \d+: the gradient is not finite.*diverged") as at:
        run_train(settings(cache, tmp_path, learning_rate=1e18, lora_r=0, lora_dropout=0), console)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "reflogp_run.json").exists()
    assert "There was no checkpoint yet" in str(at.value)


def test_a_gradient_over_the_limit_stops_the_run_with_its_weights_saved(cache, console, tmp_path):
    config = settings(cache, tmp_path, stop_grad_norm=1e-3)
    with pytest.raises(ReflogpError, match=r"norm is .* above --stop-grad-norm 0\.001") as found:
        run_train(config, console)
    last_good = unfinished(tmp_path) / "last_good"
    assert str(last_good) in str(found.value)
    assert load_file(last_good / "adapter_model.safetensors")
