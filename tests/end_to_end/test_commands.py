"""The command as a user runs it: real processes, real vLLM, real files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from reflogp.data_schemas import manifest as manifests
from tests.caches import rows
from tests.truth import Truth

REFLOGP = Path(sys.executable).with_name("reflogp")


def reflogp(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command; its exit code must be `code`, and it never shows a traceback."""
    done = subprocess.run(
        [REFLOGP, *map(str, arguments)], capture_output=True, text=True, timeout=1000, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def run_file(checkpoint, adapter, few_preferences, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = folder / "run.yaml"
    sections = {
        "precompute": {
            "reference": str(checkpoint),
            "adapter": str(adapter),
            "data": str(few_preferences),
            "cache": str(folder / "cache"),
            "engine": "vllm",
            "max_length": 192,
        },
        "train": {"output": str(folder / "model"), "max_steps": 3, "accumulation": 2},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="module")
def first_run(run_file) -> subprocess.CompletedProcess[str]:
    return reflogp("run", "--config", run_file)


@pytest.mark.vllm
def test_both_stages_run_and_print_what_they_made(first_run, run_file):
    for expected in ("cache", "pairs", "tokens/s", "loss", "margin", "accuracy", "model"):
        assert expected in first_run.stdout
    assert "engine: vllm" in first_run.stderr
    assert "prompt_too_long 2" in first_run.stderr
    metrics = (run_file.parent / "model" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 3
    # float32 policy and float32 vLLM agree
    assert json.loads(metrics[0])["loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.vllm
def test_the_cache_that_vllm_made_equals_pefts_float32_forward(
    first_run, run_file, checkpoint, adapter
):
    cache = run_file.parent / "cache"
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    definition, found, moved = Truth(model), rows(cache), []
    assert len(found) == 22
    for row in found:
        for side in ("chosen", "rejected"):
            ids = row["prompt_ids"], row[f"{side}_ids"]
            truth = definition.logps(*ids)
            np.testing.assert_allclose(row[f"ref_{side}_logps"], truth, atol=1e-4, rtol=0)
            with model.disable_adapter():
                moved.append(np.abs(definition.logps(*ids) - truth).mean())
    assert np.mean(moved) > 0.1  # the adapter matters, or the comparison would be worth nothing
    manifest = manifests.read(cache)
    assert "pooling model" in manifest.engine.method
    assert manifest.verification is not None
    assert manifest.verification.float32.max < 1e-4


@pytest.mark.vllm
def test_the_second_run_does_nothing_and_says_why(first_run, run_file, command):
    again = command("run", "--config", run_file)
    assert again.code == 0
    assert "stage one: up to date" in again.stderr
    assert "stage two: up to date" in again.stderr
    assert again.stdout == first_run.stdout


@pytest.mark.vllm
def test_inspect_tells_what_is_in_the_cache(first_run, run_file, command):
    cache = run_file.parent / "cache"
    shown = command("inspect", cache).stdout
    for expected in (
        "22 from 24 rows read",
        "prompt_too_long 2",
        "vllm",
        "weights hash",
        "max_length=192",
    ):
        assert expected in shown
    found = json.loads(command("inspect", cache, "--json").stdout)
    assert found["counts"]["rows"] == 22
    assert found["inputs"]["weights"]


def test_precompute_and_train_take_their_options_from_the_command_line(
    checkpoint, few_preferences, tmp_path, command
):
    cache, output = tmp_path / "cache", tmp_path / "model"
    command(
        "precompute", "--reference", checkpoint, "--data", few_preferences, "--cache", cache,
        "--engine", "transformers", "--max-length", 192,
    )  # fmt: skip
    done = command(
        "train", "--cache", cache, "--output", output, "--loss", "dpo", "--beta", 0.2,
        "--lora-r", 4, "--max-steps", 2, "--accumulation", 1,
    )  # fmt: skip
    assert "0.6931" in done.stdout
    assert json.loads((output / "reflogp_run.json").read_text())["settings"]["beta"] == 0.2
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["precompute"], "--reference (in YAML: reference) is required"),
        (["precompute", "--reference", "nowhere", "--data", "x.jsonl", "--cache", "c"],
         "--reference nowhere: no such folder"),
        (["train", "--cache", "nowhere", "--output", "o"], "nowhere: the cache does not exist"),
        (["train", "--cache", "c", "--output", "o", "--beta", "-1"], "--beta"),
        (["inspect", "nowhere"], "nowhere: the cache does not exist"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["precompute", "--engine", "vlm"], "--engine"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_message_and_exit_code_2(
    arguments, expected, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.code == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_installed_command_ends_with_the_same_exit_code():
    assert "the cache does not exist" in reflogp("inspect", "nowhere", code=2).stderr


def test_help_needs_no_torch():
    code = """
import sys
from reflogp.pipeline.cli import app
commands = ["", "precompute", "train", "sweep", "run", "inspect", "diagnose", "filter", "export"]
for command in commands:
    try:
        app([*command.split(), "--help"])
    except SystemExit:
        pass
    assert not {"torch", "transformers", "vllm", "datasets"} & set(sys.modules), command
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 9
