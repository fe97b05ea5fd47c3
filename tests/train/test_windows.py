"""The shared layout of policies with windows, chunks and sinks gives what each sequence gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from reflogp.data_schemas.errors import InputError
from reflogp.stages.doctor.families import VOCABULARY, WINDOW
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.causal_lm import attention_for
from reflogp.stages.train.data.attention import Attention, Reach
from reflogp.stages.train.data.batches import separate, shared
from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.layout import choose_layout
from tests.train.families import tiny
from tests.truth import true_logps

_CAPPED = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": _CAPPED, "gemma3_text": {}, "gpt_oss": {}, "olmo3": {}, "cohere2": {},
    "exaone4": {}, "mistral": {}, "phi3": {}, "llama4_text": {}, "starcoder2": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}  # fmt: skip


def policy_of(name, **more):
    """A policy with the attention that training chooses, and the same in plain eager attention."""
    plain = tiny(name, "eager", **FAMILIES[name], **more)
    return tiny(name, attention_for(plain.config), **FAMILIES[name], **more), plain


def pair(prompt: int, chosen: int, rejected: int, seed: int, *, masked: bool = False) -> Pair:
    source = np.random.default_rng(seed)
    lengths = (prompt, chosen, rejected)
    first, good, bad = (source.integers(1, VOCABULARY, n, dtype=np.int32) for n in lengths)
    if not masked:
        return Pair(first, good, bad, -1.0, -2.0)
    masks = [source.random(len(ids)) < 0.5 for ids in (good, bad)]
    for mask in masks:
        mask[-1] = True  # a response has at least one scored token
    return Pair(first, good, bad, -1.0, -2.0, None, 1.0, *masks)


def random_pairs() -> list[Pair]:
    """Each of prompt, chosen and rejected is shorter or longer than the window."""
    source = np.random.default_rng(1)
    sizes = [[50, 30, 40], [3, 40, 25], [20, 5, 60], [1, 1, 1]]
    sizes += source.integers(1, 70, (3, 3)).tolist()
    return [pair(p, c, r, seed, masked=seed % 2 == 1) for seed, (p, c, r) in enumerate(sizes)]


def logps_of(policy, layout, pairs) -> Tensor:
    batch = layout(pairs)
    return response_logps(policy, batch["inputs"], batch["rows"], batch["targets"])


def truth_of(policy, pairs) -> Tensor:
    """In the order of a batch: the chosen responses, then the rejected."""
    found = []
    for side in (0, 1):
        for one in pairs:
            logps = true_logps(policy, one.prompt_ids, one.responses[side])
            mask = one.masks[side]
            found.append(logps if mask is None else logps[torch.from_numpy(mask)])
    return torch.cat(found).float()


def gradients(policy, logps) -> list[Tensor]:
    policy.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_gradients_are_those_of_each_sequence_by_itself(name):
    policy, plain = policy_of(name)
    pairs = random_pairs()
    layout, why = choose_layout(policy, "shared", pairs)
    assert "computed once" in why
    wanted = truth_of(plain, pairs)
    assert all(
        torch.equal(*both) for both in zip(policy.parameters(), plain.parameters(), strict=True)
    )
    expected = gradients(plain, wanted)
    for each in (layout, separate):
        found = logps_of(policy, each, pairs)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        for one, other in zip(gradients(policy, found), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def capped():
    policy, _ = policy_of("gemma2")
    return policy


sizes = st.integers(1, 3 * WINDOW)


@given(st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_any_lengths_in_any_company(capped, lengths):
    pairs = [pair(p, c, r, seed) for seed, (p, c, r) in enumerate(lengths)]
    layout, _ = choose_layout(capped, "shared")
    with torch.no_grad():
        found = logps_of(capped, layout, pairs)
        torch.testing.assert_close(found, truth_of(capped, pairs), atol=1e-4, rtol=0)


def test_a_window_is_measured_in_positions():
    one = pair(2, 3, 2, 0)
    attention = Attention({"near": Reach(window=2), "chunks": Reach(chunk=3)})
    inputs = shared([one], attention)["inputs"]
    near, chunks = (
        inputs["attention_mask"][kind][0, 0].int().tolist() for kind in ("near", "chunks")
    )
    assert near == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 0, 1, 0],  # the rejected response follows the prompt
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert chunks[3:] == [
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "olmo3"])
def test_eager_attention_gets_numbers_to_add_and_sdpa_gets_bools(name, dtype):
    policy = policy_of(name)[0].to(dtype)
    layout, _ = choose_layout(policy, "shared", random_pairs())
    eager = name != "olmo3"
    for mask in layout(random_pairs())["inputs"]["attention_mask"].values():
        assert mask.dtype == (dtype if eager else torch.bool)
        assert mask.isfinite().all()
        assert set(mask.unique().tolist()) == ({0.0, torch.finfo(dtype).min} if eager else {0, 1})


def test_a_policy_that_ignores_a_window_is_found_out_on_pairs_that_are_longer(monkeypatch):
    policy, _ = policy_of("gemma3_text")
    forward = policy.forward

    def wide(attention_mask=None, **inputs):
        if isinstance(attention_mask, dict):
            attention_mask = dict.fromkeys(attention_mask, attention_mask["full_attention"])
        return forward(attention_mask=attention_mask, **inputs)

    monkeypatch.setattr(policy, "forward", wide)
    for longest in ([pair(50, 30, 40, 0)], []):  # lengths that are not known may be long
        layout, why = choose_layout(policy, "auto", longest)
        assert layout is separate
        assert "it scores a shared sequence differently" in why


def test_llama_4_is_shared_up_to_where_it_scales_by_index():
    policy, _ = policy_of("llama4_text", floor_scale=100, attn_temperature_tuning=True)
    assert choose_layout(policy, "auto", [pair(30, 39, 30, 0)])[0] is not separate
    layout, why = choose_layout(policy, "auto", [pair(30, 40, 30, 0)])
    assert layout is separate
    assert "it scales attention by index from 100 tokens on, and a pair has 100" in why
    with pytest.raises(InputError, match=r"by index.*--layout separate"):
        choose_layout(policy, "shared")


def adapted(name, *, plain: bool):
    """A policy with a LoRA adapter that is not zero."""
    policy = get_peft_model(
        policy_of(name)[plain], LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    source = torch.Generator().manual_seed(0)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=source) * 0.1
    return policy.eval()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss", "mistral", "llama4_text"])
def test_gradients_of_an_adapter_with_recomputed_layers(name):
    pairs = random_pairs()
    plain, policy = adapted(name, plain=True), adapted(name, plain=False)
    expected = gradients(plain, truth_of(plain, pairs))
    layout, _ = choose_layout(policy, "shared", pairs)
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()  # layers are recomputed in training mode only
    passes: list[int] = []
    layers = [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]
    norm = next(m for m in layers[0].children() if "Norm" in type(m).__name__)
    norm.register_forward_hook(lambda *_: passes.append(1))
    for one, other in zip(
        gradients(policy, logps_of(policy, layout, pairs)), expected, strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert len(passes) == 2
