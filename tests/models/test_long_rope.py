"""LongRoPE's factors depend on the length of a sequence, and never on its neighbours."""

from typing import Any

import numpy as np
import pytest
import torch

from reflogp.data_schemas.errors import InputError
from reflogp.stages.doctor.families import VOCABULARY
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.causal_lm import load_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import Choice, start
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.layout import choose_layout
from tests.train.families import tiny
from tests.truth import Truth

SHORT = 64  # tokens; a longer sequence has long factors
SIZES = [(20, 20, 60), (20, 44, 10), (40, 60, 40), (21, 44, 5)]
ROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": SHORT,
    "short_factor": [1.0] * 16, "long_factor": [1.0 + i for i in range(16)],
    "short_mscale": 1.1, "long_mscale": 1.4,
}  # fmt: skip


@pytest.fixture(scope="module", params=["phi3", "phimoe"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    more: dict[str, Any] = (
        {"original_max_position_embeddings": SHORT} if request.param == "phi3" else {}
    )
    tiny(request.param, rope_parameters=ROPE, **more).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pairs():
    source = np.random.default_rng(0)
    found = []
    for sizes in SIZES:
        prompt, good, bad = (source.integers(1, VOCABULARY, n, dtype=np.int32) for n in sizes)
        found.append(Pair(prompt, good, bad, 0.0, 0.0))
    return found


def requests(pairs):
    return [Request(one.prompt_ids, one.responses[side]) for side in (0, 1) for one in pairs]


def test_the_engine_scores_each_sequence_as_by_itself(folder, pairs):
    wanted = requests(pairs)
    scorer = TransformersScorer(Checkpoint(folder, None, "float32"), device="cpu")
    truth = Truth(folder)
    truth.check(wanted, scorer.score(wanted))
    truth.check(wanted, scorer.rescore(wanted))
    short, long = (truth.logps(*wanted[i]) for i in (1, 3))  # 64 and 65 tokens
    assert short.std() > 0.1 < long.std()


def test_a_batch_of_training_scores_each_sequence_as_by_itself(folder, pairs):
    policy = load_causal_lm(folder, torch.float32)
    layout, why = choose_layout(policy, "auto", pairs)
    assert "depend on the length beyond 64 tokens, and a pair has 140" in why
    with pytest.raises(InputError, match=r"--layout shared.*beyond 64 tokens"):
        choose_layout(policy, "shared")
    batch = layout(pairs)
    found = response_logps(policy, batch["inputs"], batch["rows"], batch["targets"])
    wanted = np.concatenate([Truth(folder).logps(*one) for one in requests(pairs)])
    np.testing.assert_allclose(found.detach(), wanted, atol=1e-4, rtol=0)


def test_short_pairs_share_their_prompts(folder):
    ids = np.arange(1, 21, dtype=np.int32)
    pairs = [Pair(ids, ids, ids[5:], 0.0, 0.0)]
    policy = load_causal_lm(folder, torch.float32)
    layout, why = choose_layout(policy, "auto", pairs)
    assert "computed once" in why
    batch = layout(pairs)
    found = response_logps(policy, batch["inputs"], batch["rows"], batch["targets"])
    wanted = np.concatenate([Truth(folder).logps(*one) for one in requests(pairs)])
    np.testing.assert_allclose(found.detach(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("limit", "method"), [(SHORT + 1, "pooler"), (500, "auto")])
def test_vllm_is_refused_where_it_would_use_long_factors_for_short_sequences(
    folder, tmp_path, limit, method
):
    config = PrecomputeConfig(
        reference=str(folder), data="d", cache=tmp_path, max_length=limit, method=method
    )
    with pytest.raises(InputError, match=r"LongRoPE.*--engine transformers.*below 64"):
        start(Choice("vllm", "1", "asked for"), Checkpoint(folder, None, "float32"), config)
