"""An adapter that is merged into a checkpoint gives the log-probs of the two side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.adapter import load_adapter, merged
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.train.result.saving import merge_adapter
from tests.checkpoints import make_random_model
from tests.truth import Truth

IDS = torch.arange(3, 40)[None]
ADAPTERS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head and embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "DoRA": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "rsLoRA": {"target_modules": "all-linear", "use_rslora": True},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
}


def make(folder: Path, *, tied: bool, layers: int = 2) -> Path:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2, attention_bias=True,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return make_random_model(folder, config)


def adapt(checkpoint: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """An adapter for `checkpoint` all of whose weights were trained."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    joined = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in joined.named_parameters():
            if weight.requires_grad and "magnitude" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    joined.save_pretrained(folder)
    return folder


def logps(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(IDS).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_the_merged_checkpoint_is_the_adapter_on_the_model(settings, tied, tmp_path):
    base = make(tmp_path / "base", tied=tied)
    adapter = adapt(base, tmp_path / "adapter", settings)
    alone = logps(AutoModelForCausalLM.from_pretrained(base))
    expected = logps(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
    assert (expected - alone).abs().max() > 0.1
    merge_adapter(adapter, Checkpoint(base, None, "float32"))
    found = logps(AutoModelForCausalLM.from_pretrained(adapter))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_the_adapter_is_scored_as_peft_runs_it(settings, tied, tmp_path):
    base = make(tmp_path / "base", tied=tied)
    adapter = adapt(base, tmp_path / "adapter", settings)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    request = Request(IDS[0, :12].int().numpy(), IDS[0, 12:].int().numpy())
    scorer = TransformersScorer(Checkpoint(base, adapter, "float32"))
    Truth(PeftModel.from_pretrained(plain, adapter)).check([request], scorer.score([request]))


def test_full_fine_tuning_from_an_adapter_trains_all_weights_of_the_two(tmp_path):
    base = make(tmp_path / "base", tied=True)
    adapter = adapt(base, tmp_path / "adapter", ADAPTERS["head"])
    joined = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model = merged(AutoModelForCausalLM.from_pretrained(base), adapter)
    torch.testing.assert_close(logps(model), logps(joined), rtol=1e-4, atol=1e-4)
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_a_model_whose_adapter_leaves_head_and_embeddings_alone_stays_tied(tmp_path):
    base = make(tmp_path / "base", tied=True)
    adapter = adapt(base, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    model = merged(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    large, small = make(tmp_path / "3", tied=False, layers=3), make(tmp_path / "2", tied=False)
    adapter = adapt(large, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    with pytest.raises(InputError, match=r"2 of the adapter's weights do not belong.*layers\.2\."):
        load_adapter(AutoModelForCausalLM.from_pretrained(small), adapter)
    path = adapter / "adapter_model.safetensors"
    save_file({n: w for n, w in load_file(path).items() if "layers.1." not in n}, path)
    with pytest.raises(InputError, match="missing adapter keys"):
        load_adapter(AutoModelForCausalLM.from_pretrained(large), adapter)
