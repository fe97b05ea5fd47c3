"""The benchmark for GPUs runs as a whole, on a CPU too, and counts what it says it counts."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.flops import flops_a_token, needed_flops
from benchmarks.pairs import synthetic_pairs, token_counts
from reflogp.stages.doctor.shapes import config_of

PAIRS = 6


@pytest.mark.slow
@pytest.mark.vllm
def test_one_command_reports_every_contender_that_runs_and_names_the_others(tmp_path):
    out = tmp_path / "out.json"
    options = {"shape": "tiny", "pairs": PAIRS, "rounds": 2, "batch-sizes": 4, "json": out,
               "contenders": "pooler,none-such,padded"}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gpu"]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "ended early: none-such" in done.stderr
    found = json.loads(out.read_text())

    assert found["shape"] == "tiny"
    assert found["versions"]["torch"] == torch.__version__
    assert found["counts"] == token_counts(synthetic_pairs(PAIRS, 1024, 1024))
    assert list(found["figures"]) == ["pooler", "padded-4"]
    assert found["failed"] == ["none-such"]
    for name, runs in found["rounds"].items():
        seconds = [run["seconds"] for run in runs]
        figures = found["figures"][name]
        assert figures["pairs_per_second"] == pytest.approx(2 * PAIRS / sum(seconds))
        share = found["flops"]["needed"] / (sum(seconds) / 2) / found["flops"]["peak"]
        assert figures["share_of_peak"] == pytest.approx(share)
        assert figures["peak_mib"] > 100
        assert name in done.stdout
    assert found["figures"]["pooler"]["pooler_ratio_min"] == 1
    assert found["figures"]["padded-4"]["pooler_ratio_max"] > 0


def test_needed_operations_are_those_that_torch_counts_in_a_forward():
    config = config_of("tiny")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    length = 16
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    cost = flops_a_token(config)
    # torch multiplies whole square matrices for the attention, and runs the head on all rows
    whole = length * (cost["layers"] + cost["attention"] * length + cost["head"])
    assert counter.get_total_flops() == whole


@pytest.mark.parametrize(
    ("chosen", "rejected", "distinct", "attended", "rows"),
    [
        ([1, 2], [3, 4, 5], 2 + 2 + 3, 10 + 12, 2 + 2),  # one row predicts 1 and 3
        ([1, 2], [1, 4], 2 + 2 + 1, 10 + 4, 2),  # one row predicts 2 and 4
        ([1, 2], [1], 2 + 2, 10, 2),
        ([1], [1, 2], 2 + 1 + 1, 6 + 4, 2),
    ],
)
def test_what_a_pair_shares_is_needed_once(chosen, rejected, distinct, attended, rows):
    pair = {"prompt_ids": [7, 8], "chosen_ids": chosen, "rejected_ids": rejected}
    cost = {"layers": 10_000, "attention": 1, "head": 100}
    assert needed_flops([pair], cost) == 10_000 * distinct + attended + 100 * rows


def test_synthetic_pairs_fit_and_have_one_seed():
    pairs = synthetic_pairs(200, 50, 100)
    assert pairs == synthetic_pairs(200, 50, 100)
    assert pairs != synthetic_pairs(200, 50, 100, seed=1)
    for pair in pairs:
        for side in ("chosen_ids", "rejected_ids"):
            assert 1 <= len(pair[side]) <= 100 - len(pair["prompt_ids"])
