"""A whole run over rows with masks, against training that knows of the marked tokens only."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows
from tests.truth import true_logps

BETA, RATE, STEPS = 0.1, 2e-4, 2


def log_ratio(policy: nn.Module, row: dict[str, Any], side: str) -> Tensor:
    """log pi_theta - log pi_ref of the tokens that the policy writes, in nats."""
    ours = true_logps(policy, row["prompt_ids"], row[f"{side}_ids"])
    differences = ours - torch.tensor(row[f"ref_{side}_logps"])
    mask = row[f"{side}_mask"]
    return differences.sum() if mask is None else differences[torch.tensor(mask)].sum()


def plain_losses(start: Path, cache: Path) -> list[float]:
    """The losses of DPO in steps over all rows, each row by itself, eager and in float32."""
    policy = AutoModelForCausalLM.from_pretrained(
        start, dtype=torch.float32, attn_implementation="eager"
    )
    every, losses = rows(cache), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        losses.append(0.0)
        for row in every:
            margin = log_ratio(policy, row, "chosen") - log_ratio(policy, row, "rejected")
            loss = -nn.functional.logsigmoid(BETA * margin) / len(every)
            loss.backward()
            losses[-1] += loss.item()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_the_loss_curve_is_that_of_training_on_the_marked_tokens(
    masked, other_checkpoint, console, tmp_path
):
    # each step is over all rows, so their order does not matter
    passes, rest = divmod(len(rows(masked)), 2)
    assert not rest
    settings = TrainConfig(
        cache=masked, output=tmp_path, policy=str(other_checkpoint), allow_mismatch=True,
        lora_r=0, beta=BETA, learning_rate=RATE, warmup=0, batch_size=2, accumulation=passes,
        max_steps=STEPS,
    )  # fmt: skip
    run_train(settings, console)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["loss"] for line in lines]
    expected = plain_losses(other_checkpoint, masked)
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.01
