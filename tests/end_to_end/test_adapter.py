"""A LoRA adapter on the reference: every engine against PEFT's own forward, and both stages."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.pipeline.fingerprint import model_inputs
from reflogp.pipeline.resolve import resolve_checkpoint
from reflogp.pipeline.run import run_precompute, run_train, run_verify
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines import vllm_lora
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.score.engines.vllm_prompt_logprobs import VllmPromptLogprobsScorer
from reflogp.stages.train.config import TrainConfig
from tests.checkpoints import make_adapter, make_checkpoint
from tests.conftest import Silent
from tests.truth import Truth


def settings(checkpoint: Path, adapter: Path | None, data: Path, cache: Path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), adapter=None if adapter is None else str(adapter),
        data=str(data), cache=cache, engine="transformers", max_length=192,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sealed(
    checkpoint: Path, adapter: Path, few_preferences: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of base and adapter; test_commands.py has one that vLLM made."""
    config = settings(checkpoint, adapter, few_preferences, tmp_path_factory.mktemp("cache"))
    run_precompute(config, Silent())
    return config.cache


def cached_rows(cache: Path) -> Iterator[tuple[Request, np.ndarray]]:
    for shard in manifests.read(cache).shards:
        for row in read_shard(cache / shard.file).to_pylist():
            for side in ("chosen", "rejected"):
                prompt, response = row["prompt_ids"], row[f"{side}_ids"]
                request = Request(np.array(prompt, np.int32), np.array(response, np.int32))
                yield request, np.array(row[f"ref_{side}_logps"])


@pytest.fixture(scope="module")
def truth(checkpoint: Path, adapter: Path, sealed: Path) -> list[np.ndarray]:
    """The definition: PEFT's forward of each cached sequence by itself, float32."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    definition, found, moved = Truth(model), [], []
    for request, _ in cached_rows(sealed):
        found.append(definition.logps(*request))
        with model.disable_adapter():
            moved.append(np.abs(definition.logps(*request) - found[-1]).mean())
    assert np.mean(moved) > 0.1  # the adapter matters, or the comparisons would be worth nothing
    return found


def test_transformers_scores_base_and_adapter_exactly(sealed, truth):
    for (_, logps), expected in zip(cached_rows(sealed), truth, strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.vllm
def test_prompt_logprobs_scores_base_and_adapter_exactly(checkpoint, adapter, sealed, truth):
    scorer = VllmPromptLogprobsScorer(
        Checkpoint(checkpoint, adapter, "float32"), max_length=192, settings={}
    )
    found = scorer.score([request for request, _ in cached_rows(sealed)])
    scorer.close()
    for logps, expected in zip(found, truth, strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=0)


def test_verify_finds_base_and_adapter_again(sealed, adapter, checkpoint, console, tmp_path):
    assert run_verify(sealed, 4, None, 0, console).float32.max < 1e-4
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert run_verify(sealed, 4, str(checkpoint), 0, console, str(moved)).passed
    with pytest.raises(InputError, match=r"--adapter .*: adapter differ"):
        run_verify(sealed, 4, str(checkpoint), 0, console)


@pytest.mark.parametrize("lora_r", [8, pytest.param(0, marks=pytest.mark.slow)])
def test_training_starts_from_base_and_adapter(sealed, adapter, console, tmp_path, lora_r):
    config = TrainConfig(
        cache=sealed, output=tmp_path / "model", max_steps=3, lora_r=lora_r, learning_rate=1e-3
    )
    record = run_train(config, console)
    assert record.first.loss == pytest.approx(0.693147, abs=1e-5)
    assert record.last.loss < record.first.loss - 1e-3
    assert record.adapter == str(adapter)
    assert (config.output / "adapter_config.json").is_file() == bool(lora_r)
    assert str(adapter) in (config.output / "README.md").read_text()
    # what comes out is loaded as ever, and is near to where it began
    model = AutoModelForCausalLM.from_pretrained(config.output)
    assert model.dtype == torch.float32
    if lora_r:
        saved = json.loads((config.output / "adapter_config.json").read_text())
        assert saved["r"] == 4
        assert saved["use_rslora"]
        assert saved["lora_dropout"] == 0.0


def test_a_policy_without_the_references_adapter_is_refused(
    sealed, checkpoint, other_adapter, console, tmp_path
):
    bare = TrainConfig(cache=sealed, output=tmp_path, policy=str(checkpoint))
    with pytest.raises(InputError, match=r": adapter differ.*Give --policy \S+ --adapter"):
        run_train(bare, console)
    with pytest.raises(InputError, match=": adapter differ"):
        run_train(bare.model_copy(update={"adapter": str(other_adapter)}), console)


@pytest.fixture(scope="module")
def other_adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(checkpoint, tmp_path_factory.mktemp("other"), r=2)


def test_a_folder_with_an_adapter_stands_for_base_and_adapter(
    checkpoint, adapter, few_preferences, console, tmp_path
):
    both = Checkpoint(checkpoint, adapter, "float32")
    assert resolve_checkpoint(str(adapter), None, "reference") == both
    assert resolve_checkpoint(str(checkpoint), str(adapter), "reference") == both
    config = settings(adapter, None, few_preferences, tmp_path / "cache")
    implied = run_precompute(config, console)
    again = settings(checkpoint, adapter, few_preferences, tmp_path / "cache")
    assert run_precompute(again, console) == implied
    assert "up to date" in console.said[-1]
    run_train(TrainConfig(cache=config.cache, output=tmp_path / "model", max_steps=1), console)


def precompute_again(config: PrecomputeConfig, console: Silent) -> tuple[Manifest, str]:
    manifest = run_precompute(config, console)
    return manifest, next((line for line in console.said if "runs again" in line), "")


def test_another_adapter_or_none_runs_stage_one_again(
    checkpoint, other_adapter, few_preferences, console, tmp_path
):
    own = shutil.copytree(other_adapter, tmp_path / "adapter")
    config = settings(checkpoint, own, few_preferences, tmp_path / "cache")
    run_precompute(config, console)
    edit(own, base_model_name_or_path="elsewhere", peft_version="0", lora_dropout=0.1)
    run_precompute(config, console)
    assert "up to date" in console.said[-1]
    edit(own, lora_alpha=7)
    _, said = precompute_again(config, console)
    assert said.endswith(": adapter")
    console.said.clear()
    manifest, said = precompute_again(config.model_copy(update={"adapter": None}), console)
    assert said.endswith(": adapter")
    assert manifest.inputs.adapter == "none"


def edit(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_tokenizer_beside_an_adapter_is_the_one_that_counts(
    checkpoint, other_adapter, few_preferences, console, tmp_path
):
    tuned = shutil.copytree(other_adapter, tmp_path / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(tuned)
    plain, own = (
        model_inputs(Checkpoint(checkpoint, folder, "float32")) for folder in (other_adapter, tuned)
    )
    assert plain["chat_template"] != own["chat_template"]
    manifest = run_precompute(settings(checkpoint, tuned, few_preferences, tmp_path / "c"), console)
    row = read_shard(tmp_path / "c" / manifest.shards[0].file).to_pylist()[0]
    assert "assistant" not in tokenizer.decode(row["prompt_ids"])[-12:]
    run_train(TrainConfig(cache=tmp_path / "c", output=tmp_path / "m", max_steps=1), console)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"r": 600, "target_modules": ["q_proj"]}, "ranks up to 512, not 600"),
    ],
)
def test_what_vllm_cannot_run_is_refused_with_the_remedy(checkpoint, tmp_path, options, named):
    folder = make_adapter(checkpoint, tmp_path, **options)
    with pytest.raises(InputError, match=rf"{named}.*--engine transformers.*merge_and_unload"):
        vllm_lora.arguments(folder)


def test_what_vllm_cannot_run_is_scored_by_transformers(
    checkpoint, few_preferences, console, tmp_path
):
    whole = make_adapter(checkpoint, tmp_path / "a", use_dora=True, modules_to_save=["lm_head"])
    config = settings(checkpoint, whole, few_preferences, tmp_path / "cache")
    verification = run_precompute(config, console).verification
    assert verification is not None
    assert verification.passed
    for lora_r in (8, 0):
        train = TrainConfig(cache=config.cache, output=tmp_path / "m", max_steps=1, lora_r=lora_r)
        assert run_train(train, console).first.loss == pytest.approx(0.693147, abs=1e-5)


def test_an_adapter_that_does_not_belong_is_refused(checkpoint, other_adapter, console, tmp_path):
    deeper = make_checkpoint(tmp_path / "deeper", layers=3)
    shallow = make_adapter(checkpoint, tmp_path / "shallow", target_modules=["q_proj"])
    with pytest.raises(
        InputError, match="the adapter cannot be loaded: Found missing adapter keys"
    ):
        TransformersScorer(Checkpoint(deeper, shallow, "float32"))
    own = shutil.copytree(other_adapter, tmp_path / "own")
    edit(own, peft_type="IA3")
    with pytest.raises(InputError, match="an adapter IA3; only LoRA"):
        resolve_checkpoint(str(own), None, "reference")
    with pytest.raises(InputError, match="is an adapter itself"):
        resolve_checkpoint(str(other_adapter), str(other_adapter), "reference")
    with pytest.raises(InputError, match=r"--adapter nowhere: no such folder"):
        resolve_checkpoint(str(checkpoint), "nowhere", "reference")
    (own / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        model_inputs(Checkpoint(checkpoint, own, "float32"))


def test_an_adapter_whose_base_has_moved_says_what_to_give(checkpoint, other_adapter, tmp_path):
    own = shutil.copytree(other_adapter, tmp_path / "own")
    for gone, named in (("/gone/base", r"\(/gone/base\)"), (None, r"\(not named\)")):
        edit(own, base_model_name_or_path=gone)
        with pytest.raises(InputError, match=rf"base model {named}.*--reference, and .* --adapter"):
            resolve_checkpoint(str(own), None, "reference")
    both = resolve_checkpoint(str(checkpoint), str(own), "reference")
    assert both == Checkpoint(checkpoint, own, "float32")


def test_training_does_not_write_over_what_it_starts_from(
    checkpoint, other_adapter, few_preferences, console, tmp_path
):
    own = shutil.copytree(other_adapter, tmp_path / "adapter")
    run_precompute(settings(checkpoint, own, few_preferences, tmp_path / "cache"), console)
    with pytest.raises(InputError, match="this is the adapter"):
        run_train(TrainConfig(cache=tmp_path / "cache", output=own), console)
    assert (own / "adapter_model.safetensors").is_file()
