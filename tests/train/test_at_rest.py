"""In training the policy computes what was scored: no dropout, no layers dropped, no noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PhimoeConfig,
)

from reflogp.stages.doctor.families import config_of
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.policy import load_policy
from tests.checkpoints import make_random_model

SMALL = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "num_key_value_heads": 1, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NOISY = {
    "llama": LlamaConfig(**SMALL, attention_dropout=0.5),
    "gpt2": GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5,
        attn_pdrop=0.5,
    ),
    "opt": OPTConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48,
        word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, hidden_dropout=0.5, attention_dropout=0.5,
    ),
    "falcon": FalconConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        hidden_dropout=0.5, attention_dropout=0.5,
    ),
    "bloom": BloomConfig(
        vocab_size=200, hidden_size=32, n_layer=2, n_head=2, hidden_dropout=0.5,
        attention_dropout=0.5,
    ),
    "phi": PhiConfig(
        **(SMALL | {"num_key_value_heads": 2}), resid_pdrop=0.5, embd_pdrop=0.5,
        attention_dropout=0.5,
    ),
    "mamba": MambaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "mixtral": MixtralConfig(
        **SMALL, **EXPERTS, router_jitter_noise=0.5, attention_dropout=0.5
    ),
    "phimoe": PhimoeConfig(  # its jitter has a part in evaluation, too, and must stay there
        **SMALL, **EXPERTS, router_jitter_noise=0.1, input_jitter_noise=0.5, attention_dropout=0.5
    ),
}  # fmt: skip


def options(**given: Any) -> TrainConfig:
    return TrainConfig(cache="cache", output="output", **given)


def logits(policy, ids):
    with torch.no_grad():
        return policy(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("noisy")
    return {name: make_random_model(folder / name, config) for name, config in NOISY.items()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient_checkpointing"])
@pytest.mark.parametrize("lora_r", [0, 4], ids=["all", "lora"])
@pytest.mark.parametrize("name", NOISY)
def test_a_policy_in_training_gives_what_it_gives_in_evaluation(noisy, name, lora_r, checkpointing):
    policy: Any = load_policy(Checkpoint(noisy[name], None, "float32"), options(lora_r=lora_r))
    ids = torch.arange(3, 63).reshape(2, 30)
    expected = logits(policy.eval(), ids)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    assert policy.training
    torch.manual_seed(0)
    for _ in range(2):
        assert torch.equal(logits(policy, ids), expected)
    policy(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_the_dropout_of_lora_is_on_in_training_and_only_there(noisy):
    policy = load_policy(
        Checkpoint(noisy["llama"], None, "float32"), options(lora_r=4, lora_dropout=0.5)
    )
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    ids = torch.arange(3, 63).reshape(2, 30)
    policy.train()
    assert not torch.equal(logits(policy, ids), logits(policy, ids))
    policy.eval()
    assert torch.equal(logits(policy, ids), logits(policy, ids))


def test_gradient_checkpointing_still_saves_activations(noisy):
    policy: Any = load_policy(Checkpoint(noisy["opt"], None, "float32"), options(lora_r=4))
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = policy.get_base_model().get_decoder().layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    policy.train()
    ids = torch.arange(3, 33)[None]
    policy(input_ids=ids, use_cache=False).logits.sum().backward()
    assert len(calls) == 2  # once more in the backward pass


def test_every_linear_layer_but_head_and_router_gets_an_adapter(noisy):
    def adapted(name: str, **given: Any) -> set[str]:
        policy = load_policy(Checkpoint(noisy[name], None, "float32"), options(**given))
        trained = [n for n, weight in policy.named_parameters() if weight.requires_grad]
        assert all(".lora_" in name for name in trained)
        return {name.partition(".lora_")[0].rpartition(".")[2] for name in trained}

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert adapted("llama") == attention | {"gate_proj", "up_proj", "down_proj"}
    assert adapted("llama", lora_targets="all-linear") == adapted("llama")
    assert adapted("llama", lora_targets="q_proj,v_proj") == {"q_proj", "v_proj"}
    assert adapted("gpt2") == {"c_attn", "c_proj", "c_fc"}
    assert adapted("phimoe") == adapted("mixtral") == attention  # experts are no linear layers
    assert adapted("mamba") == {"in_proj", "x_proj"}  # it reads the weights of the other two
    assert "out_proj" in adapted("opt")


def test_a_layer_inside_a_router_gets_no_adapter(tmp_path):
    folder = make_random_model(tmp_path, config_of("dbrx"))
    policy = load_policy(Checkpoint(folder, None, "float32"), options(lora_r=4))
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert trained
    assert not [name for name in trained if "router" in name]


def test_layers_without_a_name_are_found_by_that_of_their_list(tmp_path):
    folder = make_random_model(tmp_path, config_of("gemma3n_text"))
    policy = load_policy(Checkpoint(folder, None, "float32"), options(lora_r=4))
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert any("altup_projections.0.lora_A" in name for name in trained)
    assert any("layers.1.self_attn.q_proj.lora_A" in name for name in trained)
