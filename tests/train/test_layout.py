"""Both layouts give the same log-probs and gradients; a policy that cannot share is found out."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.stages.forward.response_logps import response_logps, sum_by_row
from reflogp.stages.train.data.batches import separate, shared
from reflogp.stages.train.data.cached_pairs import CachedPairs, Pair
from reflogp.stages.train.data.cached_rows import longest
from reflogp.stages.train.data.layout import choose_layout
from reflogp.stages.train.loop.agreement import disagreement
from tests.train.families import tiny
from tests.truth import true_logps

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


def windowed(config, model, **options):
    return model(
        config(
            **SMALL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
            initializer_range=0.3, pad_token_id=0, **({"sliding_window": 64} | options),
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
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


lengths = st.integers(1, 30)


@given(st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=4))
@settings(max_examples=30)
def test_any_lengths_in_any_company(sizes):
    torch.manual_seed(0)
    policy = gpt2().eval()
    pairs = [pair(p, c, r, seed) for seed, (p, c, r) in enumerate(sizes)]
    with torch.no_grad():
        expected = torch.stack([sums(policy, separate, [one]) for one in pairs], dim=1).flatten()
        for layout in (separate, shared):
            torch.testing.assert_close(sums(policy, layout, pairs), expected, atol=1e-3, rtol=1e-5)


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
        (bloom, "its attention is eager"),
        (mamba, "its attention is eager|it has recurrent layers"),
        (lambda: tiny("recurrent_gemma"), "it has recurrent layers"),
        (lambda: tiny("lfm2"), "it has conv layers"),
        (lambda: tiny("qwen3_next"), "it has linear_attention layers"),
    ],
)
def test_a_policy_that_cannot_share_has_separate_sequences(build, reason):
    layout, why = choose_layout(build(), "auto")
    assert layout is separate
    assert re.search(reason, why)
    with pytest.raises(InputError, match=r"--layout shared: .*--layout separate"):
        choose_layout(build(), "shared")


def gpt_neo():  # its window has another name, and is of every other layer
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=2, window_size=64,
        attention_types=[[["global", "local"], 1]], initializer_range=0.3, resid_dropout=0.0,
        embed_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


WINDOWED = {
    "mistral": lambda: windowed(MistralConfig, MistralForCausalLM),
    "phi3": lambda: windowed(Phi3Config, Phi3ForCausalLM),
    "starcoder2": lambda: windowed(Starcoder2Config, Starcoder2ForCausalLM),
    "mixtral": lambda: windowed(MixtralConfig, MixtralForCausalLM, num_local_experts=2),
    "qwen2": lambda: windowed(
        Qwen2Config, Qwen2ForCausalLM, use_sliding_window=True, max_window_layers=0
    ),
    "gemma2": gemma2,
    "gpt_neo": gpt_neo,
}


def plain(policy, one):
    """Each response by itself, through the whole model, without a mask or positions of ours."""
    found = [true_logps(policy, one.prompt_ids, response) for response in one.responses]
    return torch.stack([logps.sum() for logps in found])


@torch.no_grad()
@pytest.mark.parametrize("name", [*WINDOWED, "qwen3", "gpt2"])
@pytest.mark.parametrize("sizes", [(100, 60, 50), (40, 25, 24), (3, 50, 70), (12, 10, 11)])
def test_whatever_layout_is_chosen_gives_what_each_sequence_gives_by_itself(name, sizes):
    torch.manual_seed(0)
    policy = ({"qwen3": qwen3, "gpt2": gpt2} | WINDOWED)[name]().eval()
    pairs = [pair(*sizes)]
    layout, why = choose_layout(policy, "auto", pairs)
    torch.testing.assert_close(
        sums(policy, layout, pairs), plain(policy, pairs[0]), atol=1e-3, rtol=1e-5, msg=why
    )


def test_a_window_that_the_masks_lack_is_shared_where_every_pair_fits_in_it():
    policy = qwen3()
    policy.config.window_of_memory = 64
    assert choose_layout(policy, "auto", [pair(10, 34, 20), pair(10, 14, 40)])[0] is shared
    layout, why = choose_layout(policy, "auto", [pair(30, 14, 20), pair(10, 20, 35)])
    assert layout is separate
    assert "attends to at most 64 tokens, and a pair has 65" in why
    with pytest.raises(InputError, match=r"--layout shared: .*64 tokens.*--layout separate"):
        choose_layout(policy, "shared", [pair(10, 20, 35)])
    assert choose_layout(policy, "auto")[0] is separate  # nothing is known of the lengths


def test_what_begins_beyond_the_short_pairs_is_found_on_the_longest(monkeypatch):
    torch.manual_seed(0)
    config = LlamaConfig(
        **SMALL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        initializer_range=0.3,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    forward = policy.forward

    def forgetful(attention_mask=None, **inputs):
        """From 100 tokens on it heeds no mask of ours, and says so nowhere."""
        mask = None if inputs["input_ids"].shape[1] > 100 else attention_mask
        return forward(attention_mask=mask, **inputs)

    monkeypatch.setattr(policy, "forward", forgetful)
    assert choose_layout(policy, "auto", [pair(30, 40, 20)])[0] is shared
    layout, why = choose_layout(policy, "auto", [pair(30, 60, 50)])
    assert layout is separate
    assert "differently" in why


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


def test_the_longest_pairs_of_a_cache_are_found_and_are_in_the_check_of_agreement(cache):
    manifest = manifests.read(cache)
    pairs = CachedPairs(cache, manifest)
    every = [pairs[row] for row in range(len(pairs))]
    found = longest(Subset(pairs, range(3)))  # held out or not
    sequences = [len(one.prompt_ids) + max(map(len, one.responses)) for one in every]
    together = [one.distinct_tokens for one in every]
    assert max(len(one.prompt_ids) + max(map(len, one.responses)) for one in found) == max(
        sequences
    )
    assert max(one.distinct_tokens for one in found) == max(together)
    asked: list[Pair] = []

    def score(rows):
        asked.extend(rows)
        return SimpleNamespace(logratios=torch.zeros(2 * len(rows)))

    assert disagreement(score, pairs, manifest, batch=2) is None
    assert len(asked) == 8
    assert max(one.distinct_tokens for one in asked) == max(together)
