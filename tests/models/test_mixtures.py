"""Of a mixture of experts, what two scorings of the same rows differ by is expected of its cache.

In bfloat16 the neighbours in a batch change the rounding, and where two experts are about as good
for a token, which of them is chosen; the log-probs of that token and of those after it then differ
by far more than rounding does.
"""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.verification import Verification
from reflogp.pipeline.run import run_precompute, run_train, run_verify
from reflogp.stages.model.causal_lm import is_mixture
from reflogp.stages.model.loading import load_config
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.seal.compare import agreement, reasons_to_fail
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.loop.agreement import disagreement
from tests.checkpoints import make_tokenizer
from tests.conftest import Silent


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A tiny Mixtral in bfloat16 whose experts are far apart."""
    folder = tmp_path_factory.mktemp("mixtral")
    tokenizer = make_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=8, num_experts_per_tok=2,
        initializer_range=0.3, max_position_embeddings=512, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache_of_mixture(mixture, few_preferences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    config = PrecomputeConfig(
        reference=str(mixture), data=str(few_preferences), cache=folder, engine="transformers",
        dtype="bfloat16", max_length=96, verify_sample=8,
    )  # fmt: skip
    run_precompute(config, Silent())
    return folder


def noisy(sd, *, tail=0.0):
    """Differences of 60 responses, with an error of `tail` nats in one of ten."""
    random = np.random.default_rng(0)
    parts = [random.normal(0, sd, n) for n in random.integers(20, 60, 60)]
    for part in parts[::10]:
        part[-5:] += tail * random.choice([-1, 1])
    zeros = [np.zeros(len(part), np.float32) for part in parts]
    names = [(str(i), "chosen", "") for i in range(len(parts))]
    return agreement("x", [part.astype(np.float32) for part in parts], zeros, names)


def test_flips_that_the_model_has_anyway_are_no_fault_and_others_are():
    usual, flips, worse = noisy(0.02), noisy(0.02, tail=2.0), noisy(0.02, tail=8.0)
    assert "more noise" in reasons_to_fail(flips, usual, usual, "bfloat16")[0]
    assert reasons_to_fail(flips, usual, usual, "bfloat16", flips) == []
    assert "more noise" in reasons_to_fail(worse, usual, usual, "bfloat16", flips)[0]
    assert reasons_to_fail(flips, usual, usual, "float32", flips) == []
    assert reasons_to_fail(worse, usual, usual, "float32", flips)


def test_a_mixture_is_told_from_a_dense_model(mixture, checkpoint):
    assert is_mixture(load_config(mixture))
    assert not is_mixture(load_config(checkpoint))


def test_verification_measures_two_scorings_and_says_so(cache_of_mixture):
    found = manifests.read(cache_of_mixture).verification
    assert found is not None
    assert found.passed
    assert found.repeat is not None
    assert 0 < found.repeat.rms < 4 * found.training_noise.rms
    assert "scoring the same responses in different batches gives" in found.summary()


def test_a_dense_model_has_no_second_scoring_and_an_older_record_still_reads(cache, console):
    found = run_verify(cache, 4, None, 0, console)
    assert found.repeat is None
    assert "repeat" not in found.model_dump_json()
    assert Verification.model_validate_json(found.model_dump_json()) == found


def test_training_against_a_cache_of_a_mixture_starts(cache_of_mixture, tmp_path, console):
    config = TrainConfig(cache=cache_of_mixture, output=tmp_path / "o", max_steps=1, batch_size=2)
    run_train(config, console)


def test_only_what_the_policy_itself_is_unsure_of_is_allowed(cache):
    """A policy whose log-ratios depend on the batch: by 3 nats, and then by 3 nats everywhere."""
    manifest = manifests.read(cache).model_copy(update={"verification": None})

    class Row:
        responses = (range(40), range(40))
        masks = (None, None)

    class Scored:
        def __init__(self, values):
            self.logratios = torch.tensor(values, dtype=torch.float64)

    def flips(rows) -> Any:
        return Scored([3.0 * (len(rows) > 1)] * 2 * len(rows))

    def off(rows) -> Any:
        return Scored([3.0] * 2 * len(rows))

    class Rows(list[Row]):
        def longest(self):
            return [0]

    rows: Any = Rows(Row() for _ in range(8))
    assert "do not agree" in str(disagreement(flips, rows, manifest, 4))
    assert disagreement(flips, rows, manifest, 4, mixture=True) is None
    assert "do not agree" in str(disagreement(off, rows, manifest, 4, mixture=True))
