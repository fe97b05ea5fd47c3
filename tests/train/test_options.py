"""Options of training that lean on a library: trackers, 4-bit weights, checkpointed activations."""

import copy
import json
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_train
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.policy import load_policy


def settings(cache, output, **options) -> TrainConfig:
    given = {
        "batch_size": 4, "accumulation": 1, "max_steps": 6, "learning_rate": 1e-2, "warmup": 0,
        "checkpoint_steps": 0, "lora_targets": "all-linear",
    }  # fmt: skip
    return TrainConfig(cache=cache, output=output, **(given | options))


def test_trackers_get_the_metrics_of_the_file(cache, console, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    output = tmp_path / "run"
    run_train(settings(cache, output, report_to="tensorboard,wandb", max_steps=2), console)
    (events,) = output.rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events)).Reload()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        found = [event.value for event in scalars.Scalars(f"train/{name}")]
        assert found == pytest.approx([line[name] for line in lines], rel=1e-6)
    assert list(tmp_path.rglob("*.wandb"))


def test_a_tracker_that_is_not_installed_is_named(cache, console, tmp_path):
    with pytest.raises(InputError, match=r"--report-to comet_ml: .*pip install comet_ml"):
        run_train(settings(cache, tmp_path, report_to="comet_ml"), console)


def test_qlora_trains_an_adapter_over_four_bit_weights_and_says_how_far_they_are(
    cache, checkpoint, console, tmp_path
):
    config = settings(cache, tmp_path / "adapter", quantize="nf4", epochs=3, max_steps=-1)
    policy = load_policy(Checkpoint(checkpoint, None, "float32"), config)
    kinds = {type(module).__name__ for module in policy.modules()}
    assert "Linear4bit" in kinds
    record = run_train(config, console)
    assert any("differ by" in said and "--quantize nf4" in said for said in console.warned)
    assert record.last.loss < record.first.loss - 0.1
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.arange(5, 40)[None]
    plain = base(ids).logits
    assert not torch.allclose(PeftModel.from_pretrained(base, config.output)(ids).logits, plain)


def test_gradients_pass_through_four_bit_weights_after_an_evaluation(cache, checkpoint, tmp_path):
    config = settings(cache, tmp_path, quantize="nf4")
    policy: Any = load_policy(Checkpoint(checkpoint, None, "float32"), config)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    trained = get_peft_model_state_dict(policy)
    rounded: Any = load_policy(Checkpoint(checkpoint, None, "float32"), config)
    plain = get_peft_model(
        rounded.unload().dequantize(), copy.deepcopy(policy.peft_config["default"])
    )
    set_peft_model_state_dict(plain, trained)
    assert "Linear4bit" not in {type(module).__name__ for module in plain.modules()}
    ids = torch.arange(5, 40)[None]
    gradients = []
    for model in (policy, plain):
        model.eval()
        with torch.no_grad():
            model(ids)
        model.train()
        response_logps(model, {"input_ids": ids}, torch.arange(34), ids[0, 1:]).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)
        assert gradient.abs().max() > 0


def test_checkpointed_activations_change_nothing_but_memory(cache, console, tmp_path):
    records = [
        run_train(settings(cache, tmp_path / str(on), gradient_checkpointing=on), console)
        for on in (False, True)
    ]
    assert records[1].last.loss == pytest.approx(records[0].last.loss, rel=1e-5)
    assert abs(records[1].last.loss - records[1].first.loss) > 0.05
