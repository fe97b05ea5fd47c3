"""Tiny models of every family of the table score as a plain eager forward, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from reflogp.data_schemas.errors import InputError
from reflogp.stages.doctor.families import FAMILIES, MOST_USED, VOCABULARY, WINDOW, config_of, make
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from tests.checkpoints import make_random_model
from tests.truth import Truth

SHAPES = ((3, 5), (1, 1), (2 * WINDOW, 40), (60, 70))  # of prompt and response


def requests() -> list[Request]:
    random = np.random.default_rng(0)
    drawn = [
        [random.integers(3, VOCABULARY, n).astype(np.int32) for n in shape] for shape in SHAPES
    ]
    return [Request(prompt, response) for prompt, response in drawn]


@pytest.mark.parametrize(
    "name",
    [
        name if name in MOST_USED else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_a_family_is_scored_as_an_eager_forward_of_each_sequence_alone(name, tmp_path):
    kind, more = FAMILIES[name]
    make(tmp_path, config_of(kind, **more))
    # all in one batch, with padding
    scorer = TransformersScorer(Checkpoint(tmp_path, None, "float32"), batch_tokens=4096)
    truth = Truth(tmp_path)
    truth.check(requests(), scorer.score(requests()))
    # the model must tell tokens apart, or the comparison would be worth nothing
    assert np.concatenate([truth.logps(*request) for request in requests()]).std() > 0.3


def test_the_table_has_the_families_that_people_train():
    assert len(FAMILIES) >= 40
    assert len(MOST_USED) == 10
    kinds = {kind for kind, _ in FAMILIES.values()}
    assert {"llama", "qwen3_next", "gemma3_text", "gpt_oss", "deepseek_v3", "mamba2"} <= kinds


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("prophetnet"), "or on how many there are"),
        (config_of("reformer"), "reformer cannot be scored exactly: its attention hashes tokens"),
    ],
    ids=["prophetnet", "reformer"],
)
def test_a_model_whose_scores_depend_on_the_length_is_refused(
    config: hf.PretrainedConfig, message: str, tmp_path: Path
) -> None:
    make_random_model(tmp_path, config)
    with pytest.raises(InputError, match=message):
        TransformersScorer(Checkpoint(tmp_path, None, "float32"))
