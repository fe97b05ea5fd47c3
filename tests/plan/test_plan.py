"""A plan counts what stage one will count, and its model of a model is the model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OlmoeConfig
from typer.testing import CliRunner

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.cli import app
from reflogp.pipeline.plan import run_plan
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.estimate.shape import shape_of
from tests.caches import rows
from tests.conftest import Silent

_SMALL = {"vocab_size": 320, "num_attention_heads": 4, "hidden_size": 64}
CONFIGS = {
    "llama": LlamaConfig(
        **_SMALL, intermediate_size=96, num_hidden_layers=3, num_key_value_heads=2
    ),
    "gpt2": GPT2Config(vocab_size=320, n_head=4, n_embd=64, n_layer=2, n_positions=64),
    "olmoe": OlmoeConfig(
        **_SMALL, intermediate_size=48, num_hidden_layers=2, num_experts=8, num_experts_per_tok=2
    ),
}


@pytest.fixture
def config(checkpoint: Path, few_preferences: Path) -> PlanConfig:
    """The data and rules of the fixture `cache`."""
    return PlanConfig(
        reference=str(checkpoint), data=str(few_preferences), max_length=192, gpu="cpu"
    )


def test_the_counts_are_those_of_the_cache(config: PlanConfig, cache: Path, console: Silent):
    counts, _ = run_plan(config, console)
    made, found = manifests.read(cache).counts, rows(cache)
    assert (counts.rows, counts.read) == (made.rows, 24)
    assert counts.prompt == made.prompt_tokens
    assert counts.response == made.chosen_tokens + made.rejected_tokens
    assert counts.sequence == counts.response + 2 * made.prompt_tokens
    prompts = {tuple(row["prompt_ids"]) for row in found}
    beginnings = {
        (row["row_id"], tuple(row[f"{side}_ids"][:length]))
        for row in found
        for side in ("chosen", "rejected")
        for length in range(1, len(row[f"{side}_ids"]) + 1)
    }
    assert counts.distinct == sum(map(len, prompts)) + len(beginnings)
    assert counts.error == 0


def test_a_sample_is_scaled_to_the_whole(config: PlanConfig, console: Silent):
    whole, _ = run_plan(config, console)
    counts, _ = run_plan(config.model_copy(update={"sample": 12}), console)
    assert (counts.read, counts.sampled) == (24, 12)
    assert abs(counts.sequence / whole.sequence - 1) < 4 * counts.error
    assert counts.rows % 2 == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_of_the_real_model(name: str, tmp_path: Path):
    config, tokens = CONFIGS[name], 16
    config.save_pretrained(tmp_path)
    shape = shape_of(tmp_path, 0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")  # fused kernels are not counted, nor is attention's
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.arange(tokens)[None])
    # the counter takes each token to attend to all, not only to those before it
    attention = shape.attended_flops * tokens**2
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    expected = (shape.body_flops + shape.head_flops) * tokens + attention
    assert counted.get_total_flops() == expected


def test_a_measured_speed_takes_the_place_of_the_model(config: PlanConfig, console: Silent):
    given = config.model_copy(update={"tokens_per_second": 50.0, "gpus": 4, "price": 3.0})
    counts, found = run_plan(given, console)
    assert found.seconds == pytest.approx(counts.sequence / 200)
    assert found.cost == pytest.approx(3 * 4 * found.seconds / 3600)


def test_all_weights_need_a_reference_and_an_optimizer(config: PlanConfig, console: Silent):
    _, lora = run_plan(config, console)
    _, full = run_plan(config.model_copy(update={"lora_r": 0}), console)
    assert lora.with_reference.weights == lora.without_reference.weights
    reference = full.with_reference.weights - full.without_reference.weights
    assert reference == full.reference_bytes
    assert full.without_reference.trained == 3 * full.reference_bytes  # both are float32
    assert 0 < lora.without_reference.trained < full.without_reference.trained


def test_the_command_takes_a_run_file_and_needs_no_weights(
    checkpoint: Path, few_preferences: Path, tmp_path: Path
):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "run.yaml"
    file.write_text(
        f"precompute: {{reference: {bare}, data: {few_preferences}, cache: c, max_length: 192}}\n"
        "train: {output: o, lora_r: 0, batch_size: 3}\n"
    )
    options = ["--config", str(file), "--gpu", "h100", "--gpus", "8", "--price", "2"]
    done = CliRunner().invoke(app, ["plan", *options])
    assert done.exit_code == 0, done.output
    said = (
        "22 of 24", "under a second on 8 x h100", "under 0.01 GPU-hours", "a guess",
        "at 2 per GPU-hour", "batches of 3 of the",
    )  # fmt: skip
    for expected in said:
        assert expected in " ".join(done.stdout.split())
    slow = ["--config", str(file), "--gpus", "8", "--gpu", "h100", "--tokens-per-second", "0.001"]
    done = CliRunner().invoke(app, ["plan", *slow])
    hours = re.search(r" ([\d,.]+) hours on 8 x h100.*?; ([\d,]+) GPU-hours", done.stdout, re.S)
    assert hours is not None
    each, all_together = (float(found.replace(",", "")) for found in hours.groups())
    assert all_together == pytest.approx(8 * each, abs=1)
    done = CliRunner().invoke(app, ["plan", *options, "--json"])
    assert json.loads(done.stdout)["counts"]["rows"] == 22
