"""Both layouts give the same log-probs and gradients; a policy that cannot share is found out."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data_schemas.errors import InputError
from stages.response_logps import response_logps, sum_by_row
from stages.train.batches import separate, shared
from stages.train.cached_pairs import Pair
from stages.train.layout import choose_layout

VOCABULARY = 300
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}


def qwen3(**options):
    return Qwen3ForCausalLM(
        Qwen3Config(
            **SMALL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, initializer_range=0.3, **options,
        )
    )  # fmt: skip


def gemma2():
    return Gemma2ForCausalLM(
        Gemma2Config(
            **SMALL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, attn_implementation="sdpa",
        )
    )  # fmt: skip


def gpt2():
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def bloom():  # its positions come from the padding mask
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2))


def mamba():
    return MambaForCausalLM(MambaConfig(**SMALL, state_size=4))


def pair(prompt: int, chosen: int, rejected: int, seed: int = 0) -> Pair:
    source = np.random.default_rng(seed)
    lengths = (prompt, chosen, rejected)
    first, good, bad = (source.integers(1, VOCABULARY, n, dtype=np.int32) for n in lengths)
    return Pair(first, good, bad, -1.0, -2.0)


def sums(policy, layout, pairs):
    batch = layout(pairs)
    logps = response_logps(policy, batch["inputs"], batch["rows"], batch["targets"])
    return sum_by_row(logps, batch["owners"], 2 * len(pairs))


@pytest.mark.parametrize("build", [qwen3, gpt2])
def test_both_layouts_give_the_same_log_probs_and_gradients(build):
    torch.manual_seed(0)
    policy = build()
    pairs = [pair(5, 7, 3), pair(1, 1, 1, 1), pair(20, 2, 30, 2), pair(9, 40, 1, 3)]
    weights = torch.linspace(-1, 1, 2 * len(pairs), dtype=torch.float64)
    found = []
    for layout in (separate, shared):
        policy.zero_grad()
        logps = sums(policy, layout, pairs)
        (logps * weights).sum().backward()
        found.append((logps.detach(), [p.grad.clone() for p in policy.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


lengths = st.integers(1, 30)


@given(st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_lengths_in_any_company(sizes):
    torch.manual_seed(0)
    policy = gpt2().eval()
    pairs = [pair(p, c, r, seed) for seed, (p, c, r) in enumerate(sizes)]
    with torch.no_grad():
        expected = torch.stack([sums(policy, separate, [one]) for one in pairs], dim=1).flatten()
        for layout in (separate, shared):
            torch.testing.assert_close(sums(policy, layout, pairs), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_usual_policy_shares_and_is_left_as_it_was(checkpoint, dtype):
    policy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    layout, why = choose_layout(policy, "auto")
    assert layout is shared
    assert "computed once" in why
    assert torch.equal(torch.rand(1), expected)  # no random number was drawn
    assert policy.training


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (gemma2, "layers of sliding_attention"),
        (bloom, "its attention is"),
        (mamba, "its attention is|does not take the mask|layers of"),
        (lambda: qwen3(attn_implementation="eager"), "its attention is eager"),
    ],
)
def test_a_policy_that_cannot_share_has_separate_sequences(build, reason):
    layout, why = choose_layout(build(), "auto")
    assert layout is separate
    assert re.search(reason, why)
    with pytest.raises(InputError, match=r"--layout shared: .*--layout separate"):
        choose_layout(build(), "shared")


@pytest.mark.parametrize(
    ("dropped", "reason"), [("position_ids", "differently"), ("attention_mask", "differently")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_does_not_heed_mask_or_positions_is_found_out(
    checkpoint, dropped, reason, dtype
):
    policy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    forward = policy.forward
    policy.forward = lambda **inputs: forward(**{k: v for k, v in inputs.items() if k != dropped})
    layout, why = choose_layout(policy, "auto")
    assert layout is separate
    assert reason in why
