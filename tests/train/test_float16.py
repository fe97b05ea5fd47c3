"""What was scored in float16 is trained in float32, so that no gradient vanishes or overflows."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.policy import load_policy
from reflogp.stages.train.model.precision import autocast_dtype, weights_dtype
from tests.checkpoints import make_checkpoint
from tests.conftest import Silent


@pytest.fixture(scope="module")
def float16(tmp_path_factory):
    """A float16 checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("float16"), dtype=torch.float16)


def settings(cache, output, **options) -> TrainConfig:
    given = {"batch_size": 4, "accumulation": 1, "max_steps": 6, "warmup": 0}
    return TrainConfig(cache=cache, output=output, **(given | options))


@pytest.mark.parametrize("lora_r", [0, 4])
def test_gradients_of_a_millionth_of_a_billionth_are_what_they_are(float16, lora_r):
    config = settings("cache", "output", lora_r=lora_r)
    assert weights_dtype(config, "float16") == autocast_dtype(config, "float16") == "float32"
    policy = load_policy(Checkpoint(float16, None, "float16"), config)
    ids = torch.arange(5, 40)[None]
    gradients = []
    for scale in (1.0, 1e-15):  # float16 knows nothing below 6e-8
        policy.zero_grad()
        logps = response_logps(policy, {"input_ids": ids}, torch.arange(34), ids[0, 1:])
        (scale * logps.sum()).backward()
        gradients.append([p.grad / scale for p in policy.parameters() if p.grad is not None])
    assert gradients[0]
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 0
    for plain, small in zip(*gradients, strict=True):
        torch.testing.assert_close(small, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_a_cache_in_float16_is_trained_on_and_the_model_has_the_checkpoints_dtype(
    float16, few_preferences, console, tmp_path
):
    config = PrecomputeConfig(
        reference=str(float16), data=str(few_preferences), cache=tmp_path / "cache",
        engine="transformers", max_length=192, truncate="response",
    )  # fmt: skip
    run_precompute(config, Silent())
    assert manifests.read(config.cache).engine.dtype == "float16"
    full = settings(config.cache, tmp_path / "full", lora_r=0, learning_rate=1e-4)
    record = run_train(full, console)
    assert record.first.loss == pytest.approx(math.log(2), rel=0.01)
    assert abs(record.last.loss - record.first.loss) > 0.01
    assert any("training computes in float32" in said for said in console.said)
    assert AutoModelForCausalLM.from_pretrained(full.output).dtype == torch.float16
