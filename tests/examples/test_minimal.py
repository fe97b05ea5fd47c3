"""The idea in one file, without reflogp, gives what reflogp gives: the same numbers and losses."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows
from tests.checkpoints import EXAMPLES
from tests.conftest import Silent

MINIMAL = EXAMPLES / "minimal.py"
PAIRS, STEPS, RATE, BETA = 12, 4, 2e-5, 0.1


@pytest.fixture(scope="module")
def data(few_preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minimal") / "preferences.jsonl"
    lines = few_preferences.read_text(encoding="utf-8").splitlines()[:PAIRS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minimal") / "cache"
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(data), cache=folder, engine="transformers",
        max_length=512,
    )  # fmt: skip
    run_precompute(config, Silent())
    return folder


def losses_in(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", printed, re.M)]


def arguments(checkpoint: Path, data: Path, output: Path, engine: str, steps: int) -> list[str]:
    return [
        str(MINIMAL), str(checkpoint), str(data), str(output),
        *("--engine", engine, "--beta", str(BETA), "--rate", str(RATE)),
        *("--steps", str(steps), "--pairs", str(PAIRS)),
    ]  # fmt: skip


def sums(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[float]]:
    """Both log-probs of each row, by its token ids."""
    parts = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {
        tuple(tuple(row[part]) for part in parts): [
            row["ref_chosen_logp_sum"], row["ref_rejected_logp_sum"]
        ]
        for row in found
    }  # fmt: skip


def test_it_imports_nothing_of_reflogp_and_stays_small():
    text = MINIMAL.read_text(encoding="utf-8")
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert not imported & {"reflogp", "pipeline", "stages", "data_schemas"}
    assert len(text.splitlines()) <= 175


def test_both_score_the_same_tokens_alike_and_take_the_same_steps(
    checkpoint, data, cache, console, tmp_path, monkeypatch, capsys
):
    given = arguments(checkpoint, data, tmp_path / "minimal", "transformers", STEPS)
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(str(MINIMAL), run_name="__main__")
    losses = losses_in(capsys.readouterr().out)
    theirs = sums(pq.read_table(tmp_path / "minimal" / "scored.parquet").to_pylist())
    ours = sums(rows(cache))
    assert len(ours) == PAIRS
    assert ours.keys() == theirs.keys()
    for ids, values in ours.items():
        np.testing.assert_allclose(values, theirs[ids], rtol=1e-5)

    output = tmp_path / "reflogp"
    config = TrainConfig(
        cache=cache, output=output, beta=BETA, lora_r=0, learning_rate=RATE, schedule="constant",
        warmup=0, max_steps=STEPS, batch_size=PAIRS, accumulation=1, checkpoint_steps=0,
    )  # fmt: skip
    run_train(config, console)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(logged) == len(losses) == STEPS
    # what four steps of AdamW make of float32's rounding
    np.testing.assert_allclose(logged, losses, rtol=1e-3)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_gives_it_the_numbers_that_reflogp_has(checkpoint, data, cache, tmp_path):
    given = arguments(checkpoint, data, tmp_path / "minimal", "vllm", 1)
    done = subprocess.run(
        [sys.executable, *given], capture_output=True, text=True, check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    losses = losses_in(done.stdout)
    theirs = sums(pq.read_table(tmp_path / "minimal" / "scored.parquet").to_pylist())
    for ids, values in sums(rows(cache)).items():
        np.testing.assert_allclose(theirs[ids], values, rtol=1e-5)
    np.testing.assert_allclose(losses, [np.log(2)], rtol=1e-4)
