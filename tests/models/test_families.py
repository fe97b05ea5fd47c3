"""Each family of models is scored as its definition says, also beyond its attention's window."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PretrainedConfig

from reflogp.data_schemas.errors import InputError
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.causal_lm import load_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from tests.checkpoints import make_random_model
from tests.truth import Truth, true_logps

VOCABULARY, WINDOW = 96, 16
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
          "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "initializer_range": 0.3, "pad_token_id": 0}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, PretrainedConfig] = {
    # caps its attention scores, which sdpa does not do, and its logits
    "gemma2": hf.Gemma2Config(
        **COMMON, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    # has attention sinks, which sdpa does not have
    "gpt-oss": hf.GptOssConfig(**COMMON, **EXPERTS, head_dim=16, sliding_window=WINDOW),
    # its head reads from a part of its base model
    "opt": hf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, init_std=0.3,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128,
    ),
    "mistral": hf.MistralConfig(**COMMON, sliding_window=WINDOW),
    "bloom": hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3
    ),
    "mamba": hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8
    ),
    "mixtral": hf.MixtralConfig(**COMMON, **EXPERTS),
    "biogpt": hf.BioGptConfig(**{k: v for k, v in COMMON.items() if "key_value" not in k}),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("model"), FAMILIES[request.param])


def requests() -> list[Request]:
    random = np.random.default_rng(0)
    lengths = [(3, 5), (1, 1), (20, 40), (40, 60)]
    plain = [
        Request(
            random.integers(3, VOCABULARY, p, np.int32), random.integers(3, VOCABULARY, r, np.int32)
        )
        for p, r in lengths
    ]
    return [*plain, plain[3]._replace(mask=random.random(60) < 0.5)]


def test_scores_are_those_of_an_eager_float32_forward_of_each_sequence_alone(family):
    scorer = TransformersScorer(Checkpoint(family, None, "float32"), batch_tokens=300)
    found, truth = scorer.score(requests()), Truth(family)
    expected = [truth.logps(*request) for request in requests()]
    # the model must tell tokens apart, or the comparison would be worth nothing
    assert np.concatenate(expected).std() > 0.1
    for logps, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(logps, wanted, atol=1e-4, rtol=1e-4)


def test_the_policy_has_the_gradients_of_the_whole_model(family):
    """As stage two computes them: in training mode, through the head that runs apart."""
    request = requests()[2]
    ids = torch.from_numpy(request.token_ids).long()[None]
    rows, targets = torch.arange(19, 59), ids[0, 20:]

    def gradients(model, logps):
        logps.sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model = load_causal_lm(family, torch.float32)
    found = gradients(model, response_logps(model, {"input_ids": ids}, rows, targets))
    plain = AutoModelForCausalLM.from_pretrained(
        family, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    wanted = gradients(plain, true_logps(plain, *request[:2]))
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=name)


def test_soft_capping_matters_in_the_model_that_tests_it(tmp_path):
    make_random_model(tmp_path, FAMILIES["gemma2"])
    request = requests()[3]
    fused = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="sdpa"
    )
    off = Truth(fused).logps(*request) - Truth(tmp_path).logps(*request)
    assert np.abs(off).max() > 0.05


BERT = hf.BertConfig(**{k: v for k, v in COMMON.items() if "key_value" not in k})
XLNET = hf.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=1, n_head=2, d_inner=48)
CPM_ANT = hf.CpmAntConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=2, dim_head=16, dim_ff=48,
    num_hidden_layers=1, init_std=0.3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (BERT, torch.float32),
        (BERT, torch.bfloat16),
        (XLNET, torch.float32),
        (CPM_ANT, torch.float32),
        (CPM_ANT, torch.bfloat16),
    ],
)
def test_a_model_that_reads_both_ways_is_refused(config, dtype, tmp_path):
    make_random_model(tmp_path, config)
    with pytest.raises(InputError, match="depends on the tokens after it"):
        load_causal_lm(tmp_path, dtype)
