"""Tokenizers with more ids or fewer than the model has embeddings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.quarantine import batches
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.truth import Truth

ENGINES = ["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_with_a_token_that_the_model_lacks_is_quarantined_by_name(
    engine, checkpoint, few_preferences, tmp_path, console
):
    grown = shutil.copytree(checkpoint, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(grown)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(grown)
    rows = [json.loads(line) for line in few_preferences.read_text().splitlines()[:8]]
    rows[2]["chosen"][-1]["content"] += " <new>"
    rows[5]["prompt"] = [{"role": "user", "content": "What is <new>?"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    cache = _scored(grown, data, tmp_path / "cache", engine, console)
    manifest = manifests.read(cache)
    found = [
        row
        for batch in batches(cache / manifest.quarantine.file, manifest.quarantine)
        for row in batch.to_pylist()
    ]
    assert [row["source_row"] for row in found] == [2, 5]
    last = len(tokenizer) - 1
    wanted = f"the token <new> has the id {last}, and the model has embeddings for {last} ids"
    assert {row["detail"] for row in found} == {wanted}
    _require_exact(grown, cache)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_embeddings_that_no_token_has_are_part_of_the_softmax(
    engine, tied, checkpoint, few_preferences, tmp_path, console
):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    size = model.config.vocab_size
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    model.resize_token_embeddings(size + 37)
    with torch.no_grad():
        model.get_output_embeddings().weight[size:] = 0.5
    padded = shutil.copytree(checkpoint, tmp_path / "padded")
    model.save_pretrained(padded)
    cache = _scored(padded, few_preferences, tmp_path / "cache", engine, console)
    assert manifests.read(cache).reference.vocabulary == size + 37
    _require_exact(padded, cache)
    for lora_r in (4, 0):
        train = TrainConfig(cache=cache, output=tmp_path / f"m{lora_r}", max_steps=1, lora_r=lora_r)
        assert run_train(train, console).first.loss == pytest.approx(0.693147, abs=1e-5)


def _scored(reference: Path, data: Path, cache: Path, engine: str, console: object) -> Path:
    config = PrecomputeConfig.model_validate(
        {"reference": str(reference), "data": str(data), "cache": cache, "engine": engine,
         "max_length": 192}
    )  # fmt: skip
    run_precompute(config, console)  # type: ignore[arg-type]
    return cache


def _require_exact(reference: Path, cache: Path) -> None:
    truth = Truth(reference)
    for shard in manifests.read(cache).shards:
        for row in read_shard(cache / shard.file).to_pylist():
            for side in ("chosen", "rejected"):
                expected = truth.logps(row["prompt_ids"], row[f"{side}_ids"])
                np.testing.assert_allclose(row[f"ref_{side}_logps"], expected, atol=1e-4, rtol=0)
