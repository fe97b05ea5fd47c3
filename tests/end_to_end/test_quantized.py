"""Quantised references: scored by vLLM's own kernels, against their weights dequantised."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.resolve import checkpoint_dtype
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.seal.rescore import too_large
from reflogp.stages.train.config import TrainConfig
from tests.conftest import Silent
from tests.quantized import quantize
from tests.truth import Truth


def cached_logps(cache: Path) -> Iterator[tuple[list[int], list[int], list[float]]]:
    for shard in manifests.read(cache).shards:
        for row in read_shard(cache / shard.file).to_pylist():
            for side in ("chosen", "rejected"):
                yield row["prompt_ids"], row[f"{side}_ids"], row[f"ref_{side}_logps"]


def rms_from(checkpoint: Path, cache: Path) -> float:
    """How far the cache is from a plain float32 forward of `checkpoint`, in nats a token."""
    plain = Truth(checkpoint)
    found = [
        np.array(logps) - plain.logps(prompt, response)
        for prompt, response, logps in cached_logps(cache)
    ]
    return float(np.sqrt((np.concatenate(found) ** 2).mean()))


def precompute(reference: Path, data: Path, cache: Path, engine: str, console: Silent) -> Path:
    config = PrecomputeConfig.model_validate(
        {"reference": str(reference), "data": data.as_posix(), "cache": cache, "engine": engine,
         "max_length": 192}
    )  # fmt: skip
    run_precompute(config, console)
    return cache


needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="vLLM's kernel for weights of 4 bits on a CPU needs AVX-512",
)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["int8", pytest.param("gptq", marks=needs_avx512)])
def test_vllm_scores_a_quantised_reference_as_its_dequantised_weights(
    kind, checkpoint, few_preferences, console, tmp_path
):
    quantized, plain = quantize(checkpoint, tmp_path, kind, torch.bfloat16)
    cache = precompute(quantized, few_preferences, tmp_path / "cache", "vllm", console)
    manifest = manifests.read(cache)
    assert manifest.engine.dtype == "bfloat16"
    assert "pooling model" in manifest.engine.method
    # bfloat16 and, in int8, rounded activations; the quantisation itself is far more
    assert rms_from(plain, cache) < 0.3 * rms_from(checkpoint, cache)
    unverified = [line for line in console.warned if "no rows are verified" in line]
    if kind == "int8":
        assert manifest.verification is not None
        assert not unverified
    else:  # transformers needs a package for these that is not a dependency
        assert manifest.verification is None
        assert "this gptq model" in unverified[0]


def test_transformers_scores_a_quantised_reference_where_it_can(
    checkpoint, few_preferences, console, tmp_path
):
    quantized, plain = quantize(checkpoint, tmp_path, "int4", torch.float32)
    cache = precompute(quantized, few_preferences, tmp_path / "c", "transformers", console)
    assert rms_from(plain, cache) < 1e-5
    assert rms_from(checkpoint, cache) > 0.1


def test_a_quantised_policy_is_refused(checkpoint, few_preferences, console, tmp_path):
    quantized, _ = quantize(checkpoint, tmp_path, "int4", torch.float32)
    cache = precompute(quantized, few_preferences, tmp_path / "c", "transformers", console)
    assert "quantized (compressed-tensors): it can be scored, but not trained" in console.warned[0]
    train = TrainConfig(cache=cache, output=tmp_path / "model", max_steps=1)
    with pytest.raises(InputError, match=r"is quantized \(compressed-tensors\).*--allow-mismatch"):
        run_train(train, console)
    knowingly = {"policy": str(checkpoint), "allow_mismatch": True}
    run_train(train.model_copy(update=knowingly), console)
    assert any("weights, architecture differ" in line for line in console.warned)


@pytest.mark.parametrize("kind", ["int8", "fp8", "gptq", "int4"])
def test_the_dtype_of_a_quantised_checkpoint_is_that_of_what_is_not_quantised(
    kind, checkpoint, tmp_path
):
    quantized, _ = quantize(checkpoint, tmp_path, kind, torch.bfloat16)
    assert checkpoint_dtype(quantized) == "bfloat16"
    path = quantized / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": None}))
    assert checkpoint_dtype(quantized) == "bfloat16"


def test_packed_weights_count_as_what_they_are_in_float32(checkpoint, tmp_path, monkeypatch):
    room = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(checkpoint).parameters())
    quantized, _ = quantize(checkpoint, tmp_path, "int4", torch.bfloat16)
    memory = SimpleNamespace(available=room)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert too_large(quantized) is not None
    memory.available = 2 * room
    assert too_large(quantized) is None
