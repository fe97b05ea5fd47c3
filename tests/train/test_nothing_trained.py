"""A run that changes nothing fails, and an option that does nothing is said."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from reflogp.data_schemas.errors import ReflogpError
from reflogp.pipeline.run import run_train
from reflogp.stages.forward.response_logps import response_logps_and_squares
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.loop.no_effect import no_effect


def settings(cache, output, **options) -> TrainConfig:
    return TrainConfig(cache=cache, output=output, **options)


def test_a_run_of_one_step_with_default_settings_trains(cache, console, tmp_path):
    record = run_train(settings(cache, tmp_path, accumulation=12), console)
    assert record.steps == 1
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    changed = [tensor.abs().max() for name, tensor in adapter.items() if "lora_B" in name]
    assert min(changed) > 1e-5  # AdamW's first step is the rate


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"learning_rate": 1e-40, "lora_r": 0}, r"no weight has changed .*\. Raise --learn"),
        ({"learning_rate": 1e-30, "lora_r": 0, "weight_decay": 0.1}, "no weight has changed"),
    ],
)
def test_a_run_that_changes_no_weight_fails_and_writes_no_model(
    cache, console, tmp_path, options, why
):
    config = settings(cache, tmp_path, max_steps=2, batch_size=2, accumulation=1, **options)
    with pytest.raises(ReflogpError, match=rf"nothing was trained: .*{why}"):
        run_train(config, console)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "reflogp_run.json").exists()


def test_gradients_that_are_all_zero_are_told_from_a_rate_that_is_too_low(
    cache, console, tmp_path, monkeypatch
):
    cut = _cut_off(response_logps_and_squares)
    monkeypatch.setattr("reflogp.stages.train.loop.trainer.response_logps_and_squares", cut)
    config = settings(cache, tmp_path, max_steps=2, batch_size=2, accumulation=1)
    with pytest.raises(ReflogpError, match="nothing was trained: every gradient of the 2 steps"):
        run_train(config, console)


def _cut_off(function):
    """The same numbers, with gradients of 0, as modules that the loss does not reach have."""

    def cut(*arguments, **options):
        logps, squares = function(*arguments, **options)
        return logps * 0.0 + logps.detach(), squares

    return cut


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "0 steps train nothing"),
        ({"checkpoint_steps": 1.5}, "give a whole number of steps, or a share below 1"),
    ],
)
def test_what_can_never_do_anything_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        settings("cache", "output", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora_r": 0, "lora_alpha": 32}, ["--lora-alpha 32"]),
        ({"lora_r": 0, "lora_targets": "q_proj"}, ["--lora-targets q_proj"]),
        ({"lora_r": 0, "lora_dropout": 0.1}, ["--lora-dropout 0.1"]),
        ({"best_metric": "loss"}, ["--best-metric loss"]),
        ({"best_metric": "loss", "eval_fraction": 0.1, "checkpoint_steps": 0}, ["--best-metric"]),
        ({"keep_checkpoints": 2, "checkpoint_steps": 0}, ["--keep-checkpoints 2"]),
        ({"early_stopping_threshold": 0.1}, ["--early-stopping-threshold 0.1"]),
        ({"early_stopping": 9, "eval_fraction": 0.1}, ["--early-stopping 9"]),
        ({"early_stopping": 3, "eval_fraction": 0.1}, []),
        ({"loss": "sft", "beta": 0.3}, ["--beta 0.3"]),
        ({"loss": "dpo=1,sft=0.2", "beta": 0.3}, []),
        ({"max_steps": 5, "epochs": 2}, ["--epochs 2"]),
        ({"warmup": 0.04}, ["--warmup 0.04"]),
        ({"warmup": 0.5}, []),
        ({"checkpoint_steps": 200}, ["--checkpoint-steps 200"]),
        ({"eval_fraction": 0}, []),  # 0 is said to be none
    ],
)
def test_an_option_that_another_one_switches_off_is_named(manifest, options, named):
    config = settings("cache", "output", **options)
    said = no_effect(config, manifest, adapter=False, steps=10)
    assert len(said) == len(named)
    for message, name in zip(said, named, strict=True):
        assert message.startswith(name)
        assert "has no effect: " in message


def test_defaults_are_never_said_to_have_no_effect(manifest):
    for options in ({}, {"lora_r": 0}, {"loss": "sft"}, {"max_steps": 1}):
        config = settings("cache", "output", **options)
        assert no_effect(config, manifest, adapter=False, steps=1) == []


def test_the_adapter_that_is_trained_further_keeps_its_rank(manifest):
    config = settings("cache", "output", lora_r=16, lora_dropout=0.1)
    (said,) = no_effect(config, manifest, adapter=True, steps=10)
    assert said.startswith("--lora-r 16 has no effect: the adapter")


def test_a_run_says_it_before_the_first_step(cache, console, tmp_path):
    run_train(settings(cache, tmp_path, lora_r=0, lora_alpha=4, max_steps=1), console)
    assert any(said.startswith("--lora-alpha 4") for said in console.warned)


def test_the_first_step_that_is_evaluated_has_been_trained(cache, console, tmp_path):
    config = settings(
        cache, tmp_path, batch_size=2, accumulation=1, max_steps=4, eval_fraction=0.2,
        checkpoint_steps=1,
    )  # fmt: skip
    run_train(config, console)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates[0] == pytest.approx(5e-5)
    assert min(rates) > 0
    first = next(line for line in lines if "eval_loss" in line)
    assert first["step"] == 1
    assert first["eval_rewards/margins"] != 0
    assert torch.isfinite(torch.tensor(first["eval_loss"]))
