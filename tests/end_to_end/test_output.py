"""What training leaves is loaded as it is: by transformers, by vLLM, and by stage one again."""

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows_by_id

LONG_WAY = {"max_steps": 4, "batch_size": 4, "accumulation": 1, "learning_rate": 1e-2, "warmup": 0}


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("lora_r", [0, 4], ids=["full", "adapter"])
def test_vllm_scores_under_the_trained_policy_what_transformers_does(
    cache, few_preferences, console, tmp_path, lora_r
):
    trained = tmp_path / "trained"
    run_train(TrainConfig(cache=cache, output=trained, lora_r=lora_r, **LONG_WAY), console)
    config = PrecomputeConfig(
        reference=str(trained), data=str(few_preferences), cache=tmp_path / "cache",
        engine="vllm", max_length=192, truncate="response", verify_sample=4,
    )  # fmt: skip
    manifest = run_precompute(config, console)
    # rescored with transformers in float32 before the seal; all must be within 1e-3
    assert manifest.verification is not None
    assert manifest.verification.passed
    assert manifest.verification.float32.max < 1e-3
    assert manifest.counts.rows == manifests.read(cache).counts.rows
    before = {row["row_id"]: row["ref_chosen_logp_sum"] for row in rows_by_id(cache).values()}
    after = {row["row_id"]: row["ref_chosen_logp_sum"] for row in rows_by_id(config.cache).values()}
    assert max(abs(before[name] - after[name]) for name in before) > 1
