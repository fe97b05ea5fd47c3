"""Held-out pairs, the best step, early stopping, and what a run leaves."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.data.held_out import held_out
from tests.conftest import Silent
from tests.truth import Truth


def settings(cache, output, **options) -> TrainConfig:
    given = {"batch_size": 4, "accumulation": 1, "lora_r": 0, "learning_rate": 1e-3, "warmup": 0}
    return TrainConfig(cache=cache, output=output, **(given | options))


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_best_step_is_kept_and_evaluated_against_the_cached_reference(
    cache, checkpoint, console, tmp_path
):
    config = settings(cache, tmp_path, epochs=3, eval_fraction=0.25, best_metric="loss")
    record = run_train(config, console)
    pairs = CachedPairs(cache, manifests.read(cache))
    trained, evaluated = held_out(pairs, 0.25, config.seed)
    assert (record.pairs, record.evaluated_pairs) == (len(trained), len(evaluated))
    found = {line["step"]: line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line}
    assert list(found) == [3, 6, 9, 12]  # each fifth of 12 steps, rounded up
    assert record.evaluation is not None
    assert found[record.best_step] == min(found.values()) == record.evaluation.loss
    # what was saved is that step's policy: a plain float32 forward of it gives the same loss
    policy = Truth(tmp_path)
    losses = []
    for pair in map(pairs.__getitem__, evaluated):
        chosen, rejected = (
            float(policy.logps(pair.prompt_ids, ids).sum())
            for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        margin = chosen - pair.ref_chosen_logp - (rejected - pair.ref_rejected_logp)
        losses.append(math.log1p(math.exp(-config.beta * margin)))
    assert record.evaluation.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_training_stops_early_when_the_held_out_margins_no_longer_grow(cache, console, tmp_path):
    config = settings(
        cache, tmp_path, epochs=10, eval_fraction=0.25, checkpoint_steps=1, early_stopping=2,
        early_stopping_threshold=100.0, keep_checkpoints=1,
    )  # fmt: skip
    record = run_train(config, console)
    # the first evaluation is the best so far; two more do not better it by 100
    assert record.steps == 3
    assert record.best_step is not None
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


def test_another_cache_is_evaluated_on(cache, checkpoint, few_preferences, console, tmp_path):
    other = tmp_path / "held-out"
    make_cache(checkpoint, few_preferences, other, max_length=160)
    record = run_train(settings(cache, tmp_path / "run", max_steps=2, eval_cache=other), console)
    assert record.evaluated_pairs == manifests.read(other).counts.rows
    assert record.pairs == manifests.read(cache).counts.rows


def test_a_cache_of_another_reference_is_not_evaluated_on(
    cache, other_checkpoint, few_preferences, console, tmp_path
):
    other = tmp_path / "held-out"
    make_cache(other_checkpoint, few_preferences, other, max_length=192)
    with pytest.raises(InputError, match=r"--eval-cache .*weights differ.*same --reference"):
        run_train(settings(cache, tmp_path / "run", eval_cache=other), console)


def make_cache(checkpoint, data, folder, max_length):
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(data), cache=folder, engine="transformers",
        max_length=max_length, truncate="response",
    )  # fmt: skip
    run_precompute(config, Silent())


def test_nothing_left_to_train_on_is_said(cache, console, tmp_path):
    with pytest.raises(InputError, match=r"--eval-fraction 0\.99 leaves none"):
        run_train(settings(cache, tmp_path, eval_fraction=0.99), console)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_fraction": 0.1, "eval_cache": "x"}, "--eval-fraction or --eval-cache, not both"),
        ({"early_stopping": 2}, "--early-stopping needs --eval-fraction or --eval-cache"),
        (
            {"early_stopping": 2, "eval_fraction": 0.1, "checkpoint_steps": 0},
            "--early-stopping needs a --checkpoint-steps",
        ),
        ({"merge": True}, "--merge needs an adapter"),
        ({"report_to": "tensorbored"}, "there is no tracker 'tensorbored'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        settings("cache", "output", **options)


def test_a_merged_adapter_is_a_whole_model_that_gives_the_same(
    cache, checkpoint, console, tmp_path
):
    options = {"lora_r": 4, "max_steps": 3, "learning_rate": 1e-2}
    run_train(settings(cache, tmp_path / "adapter", **options), console)
    run_train(settings(cache, tmp_path / "merged", merge=True, **options), console)
    assert not list((tmp_path / "merged").glob("adapter_*"))
    ids = torch.arange(5, 40)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)(ids).logits
        for name in ("adapter", "merged")
    ]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)(ids).logits
    assert not torch.allclose(logits[1], base, atol=1e-2)
