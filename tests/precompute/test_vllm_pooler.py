"""Pooling models in a real vLLM, per token against a plain float32 forward of the same model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    Gemma2Config,
    GPT2Config,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from reflogp.stages.doctor.families import FAMILIES, WINDOW, config_of, make
from reflogp.stages.doctor.families import VOCABULARY as FEW
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.shared_beginnings import ask_once
from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer, unsupported
from tests.checkpoints import make_random_model
from tests.masks import masked
from tests.truth import Truth

pytestmark = pytest.mark.vllm

VOCABULARY = 640
BLOCK = 32
MAX_LENGTH = 256
# Less than the longest sequence, so that long ones are computed in chunks.
STEP_TOKENS = 96
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    # wide enough that log-probs differ from token to token and depend on the context
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 128,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": MAX_LENGTH,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ARCHITECTURES = {
    "Qwen2, tied head": Qwen2Config(**TINY | {"tie_word_embeddings": True}),
    "Qwen3": Qwen3Config(**TINY, head_dim=64),
    "GPT-2": GPT2Config(**GPT2),
    "Gemma 2, soft-capped": Gemma2Config(
        # a vocabulary that vLLM pads, caps low enough to bend these logits, and a window that is
        # shorter than the sequences
        **TINY | {"tie_word_embeddings": True, "vocab_size": VOCABULARY + 1},
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=64,
        final_logit_softcapping=4.0,
        attn_logit_softcapping=5.0,
    ),
    "OLMoE, experts": OlmoeConfig(**TINY, num_experts=4, num_experts_per_tok=2, eos_token_id=0),
}


def tokens(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


def pair(prompt: int, alike: int, chosen: int, rejected: int, seed: int = 0) -> list[Request]:
    """Two responses to a prompt of `prompt` tokens, `alike` tokens at their beginning the same."""
    shared = tokens(seed + 1, alike)
    responses = [
        np.concatenate([shared, [first], tokens(seed + 2 + first, length)]).astype(np.int32)
        for first, length in enumerate((chosen, rejected))
    ]
    return [Request(tokens(seed, prompt), response) for response in responses]


# Responses that begin alike up to just before, at and after the border of a cached block.
BORDERS = [
    request
    for total in (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1)
    for prompt in (1, 20, total)
    for request in pair(prompt, total - prompt, 9, 40, seed=1000 * total + prompt)
]
PROMPT, RESPONSE = tokens(1, 50), tokens(2, 70)
CORNERS = {
    "one token each": [Request(tokens(3, 1), tokens(4, 1)), Request(tokens(3, 1), tokens(5, 1))],
    "alike but for the last token": pair(40, 30, 0, 0),
    "one begins with the other": [Request(PROMPT, RESPONSE), Request(PROMPT, RESPONSE[:33])],
    "copies": [Request(PROMPT, RESPONSE)] * 3,
    "a conversation and its next turn": [
        Request(np.concatenate([PROMPT, RESPONSE]), tokens(6, 20)),
        Request(PROMPT, RESPONSE),
        Request(np.concatenate([PROMPT, RESPONSE[:40]]), RESPONSE[40:]),
    ],
    "as long as the engine allows": pair(200, 10, MAX_LENGTH - 211, MAX_LENGTH - 211),
    "longer than a step": pair(3 * BLOCK, 2 * BLOCK, 60, 70) + pair(1, 100, 100, 120, seed=9),
}
# The responses to a prompt have masks of different kinds.
MASKED_BORDERS = masked(BORDERS)
CORNERS |= {f"{name}, masked": masked(CORNERS[name], first=i) for i, name in enumerate(CORNERS)}


def start(folder: Path, **more: Any) -> VllmPoolerScorer:
    settings = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 16} | more
    return VllmPoolerScorer(
        Checkpoint(folder, None, "float32"), max_length=MAX_LENGTH, settings=settings
    )


def every_next_token(folder: Path) -> list[Request]:
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    return [Request(PROMPT, np.array([token], np.int32)) for token in range(vocabulary)]


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> Truth:
    return Truth(checkpoint)


@pytest.fixture(scope="module")
def scorer(checkpoint: Path) -> Iterator[VllmPoolerScorer]:
    """One engine, with what it has cached so far, for all Llama cases."""
    assert unsupported(checkpoint) is None
    engine = start(checkpoint)
    yield engine
    engine.close()


@pytest.mark.parametrize("case", CORNERS)
def test_corner_cases_are_scored_exactly(case, scorer, truth):
    requests = CORNERS[case]
    truth.check(requests, scorer.score(requests))


@pytest.mark.parametrize("requests", [BORDERS, MASKED_BORDERS], ids=["whole", "masked"])
def test_responses_that_part_at_the_border_of_a_block_are_scored_exactly(requests, scorer, truth):
    truth.check(requests, scorer.score(requests))


def test_a_cache_that_holds_every_row_already_takes_none_of_the_scores(scorer, truth):
    requests = [request for case in CORNERS.values() for request in case]
    for order in (requests, requests[::-1]):
        truth.check(order, scorer.score(order))


@pytest.mark.parametrize("requests", [BORDERS, MASKED_BORDERS], ids=["whole", "masked"])
def test_siblings_lose_no_row_to_the_cache_that_they_share(requests, scorer, monkeypatch):
    asked = []
    ask = scorer._ask

    def count(questions, *, use_cache, **more):
        asked.append((use_cache, len(questions)))
        return ask(questions, use_cache=use_cache, **more)

    monkeypatch.setattr(scorer, "_ask", count)
    scorer._engine.reset_prefix_cache()
    scorer.score(requests)
    # all of them but for the few whose own tokens are all context
    count = sum(request.scored > 0 for request in requests)
    assert asked == [(True, count), (False, 0)]


def test_a_row_that_the_cache_holds_comes_back_as_nan_and_the_others_are_right(scorer, truth):
    request = Request(tokens(71, 40), tokens(72, 100))
    scorer.score([request])
    (logps,) = scorer._ask(ask_once([request]).questions, use_cache=True)
    missing = np.isnan(logps)
    # whole blocks of the 140 tokens are held, but for the block of the last token
    assert missing.sum() == 4 * BLOCK - (40 - 1)
    np.testing.assert_allclose(logps[~missing], truth.logps(*request)[~missing], atol=1e-4, rtol=0)


def test_the_probabilities_of_all_one_token_responses_add_up_to_one(scorer, checkpoint):
    found = np.concatenate(scorer.score(every_next_token(checkpoint)))
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_float32_head_does_not_round_the_logits_of_a_bfloat16_model(checkpoint):
    scorer = VllmPoolerScorer(
        Checkpoint(checkpoint, None, "bfloat16"),
        max_length=MAX_LENGTH,
        settings={},
        head_dtype="float32",
    )
    try:
        found = np.concatenate(scorer.score(every_next_token(checkpoint)))
    finally:
        scorer.close()
    # rounded to bfloat16, with its 8 bits, hundreds of these logits would be the same
    assert len(np.unique(found)) > 0.95 * len(found)


kinds = st.none() | st.integers(0, 6)  # of the first mask; without masks half of the time


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(1, 90), st.integers(0, 70), st.integers(0, 45), st.integers(0, 45)),
        min_size=1,
        max_size=5,
    ),
    kinds,
)
@example([(BLOCK, 0, 0, BLOCK), (BLOCK, BLOCK, 0, 0), (1, 0, 0, 0)], None)
def test_any_lengths_and_shared_beginnings_are_scored_exactly(scorer, truth, shapes, first):
    requests = [request for shape in shapes for request in pair(*shape)]
    if first is not None:
        requests = masked(requests, first)
    truth.check(requests, scorer.score(requests))


# What continues, repeats or leaves a sequence, at any place and most often at a block's border.
near_borders = st.one_of(
    st.integers(1, 100), st.sampled_from([k * BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1)])
)
forks = st.tuples(near_borders, near_borders, st.integers(0, 70), st.integers(0, 2))


def fork(prompt: int, leave: int, length: int, seed: int) -> Request:
    """A sequence that leaves a common one after `leave` tokens, its prompt so long at most."""
    sequence = np.concatenate([tokens(80, leave), tokens(90 + seed, length + 1)])
    border = min(prompt, len(sequence) - 1)
    return Request(sequence[:border], sequence[border:])


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(forks, min_size=2, max_size=6), st.booleans(), kinds)
def test_forks_of_one_conversation_are_scored_exactly_warm_or_cold(
    scorer, truth, shapes, cold, first
):
    if cold:
        scorer._engine.reset_prefix_cache()
    requests = [fork(*shape) for shape in shapes]
    if first is not None:
        requests = masked(requests, first)
    truth.check(requests, scorer.score(requests))


def test_nothing_to_score_gives_nothing(scorer):
    assert scorer.score([]) == []


@pytest.mark.slow
def test_a_request_that_loses_its_place_and_begins_again_is_scored_exactly(checkpoint, truth):
    requests = [request for seed in range(6) for request in pair(150, 20, 50, 60, seed=50 * seed)]
    requests[6:] = masked(requests[6:])
    scorer = start(
        checkpoint,
        # Room for one sequence and a half; each step takes a piece of four, until room runs out.
        num_gpu_blocks_override=13,
        long_prefill_token_threshold=24,
        scheduler_reserve_full_isl=False,
        disable_log_stats=False,
    )
    try:
        found = scorer.score(requests)
        counts = {metric.name: metric for metric in scorer._engine.get_metrics()}
    finally:
        scorer.close()
    assert counts["vllm:num_preemptions"].value > 0
    truth.check(requests, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_a_plain_float32_forward(name, tmp_path):
    config: PretrainedConfig = ARCHITECTURES[name]
    folder = make_random_model(tmp_path / "model", config)
    assert unsupported(folder) is None
    requests = [*BORDERS, *(request for case in CORNERS.values() for request in case)]
    scorer = start(folder)
    try:
        found = scorer.score(requests)
    finally:
        scorer.close()
    worst = Truth(folder).check(requests, found)
    print(f"{name}: {worst:.1e} over {sum(map(len, found))} tokens")
    # the model must tell tokens apart, or the comparison above would be worth nothing
    assert np.concatenate(found).std() > 0.5


@pytest.mark.parametrize(
    "name",
    # LFM2 first: it also turns queries as tensors [tokens, heads, size]
    [
        name if name == "LFM2" else pytest.param(name, marks=pytest.mark.slow)
        for name in ("LFM2", "Falcon-H1", "Granite 4", "Mamba 2", "LFM2-MoE", "DeepSeek V3")
    ],
)
def test_a_recurrent_or_latent_state_is_scored_exactly(name, tmp_path):
    kind, more = FAMILIES[name]
    folder = make(tmp_path, config_of(kind, **more))
    assert unsupported(folder) is None
    shapes = [(60, 70), (60, 50), (WINDOW // 2, 5), (1, 1), (2 * WINDOW, 110)]
    requests = [
        Request(tokens(seed, prompt) % FEW, tokens(9 + seed, response) % FEW)
        for seed, (prompt, response) in enumerate(shapes)
    ]
    requests[1] = Request(requests[0].prompt_ids, requests[1].response_ids)
    # asked twice and with masks: nothing of the first time may be left in a state
    requests += masked(requests)
    scorer = start(folder)
    try:
        found = [scorer.score(requests), scorer.score(requests)]
    finally:
        scorer.close()
    truth = Truth(folder)
    for logps in found:
        truth.check(requests, logps)
    assert np.concatenate(found[0]).std() > 0.3


def test_an_architecture_that_vllm_does_not_know_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["NobodysForCausalLM"]}')
    assert unsupported(tmp_path) == "vLLM has no NobodysForCausalLM of its own"
