"""Training multiplies each row's loss by its weight in the cache, and says so."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.publish import run_export
from reflogp.pipeline.run import run_train
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.interop.cached_reference import CachedReference
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.batches import separate, shared, unpaired
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.model.policy import load_policy
from tests.planted import plant, row
from tests.train.test_train import our_trainer


@pytest.fixture(scope="module")
def policy(cache, other_checkpoint, tmp_path_factory):
    """Another one than the reference, so that losses differ."""
    output = tmp_path_factory.mktemp("policy")
    return load_policy(
        Checkpoint(other_checkpoint, None, "float32"),
        TrainConfig(cache=cache, output=output, lora_r=0),
    )


def gradient(trainer, policy, batch) -> tuple[float, torch.Tensor]:
    """The loss of a batch, and its gradient in the head."""
    policy.zero_grad()
    loss = trainer.compute_loss(policy, {"batch": batch, "weight": 1.0})
    loss.backward()
    return loss.item(), policy.get_parameter("lm_head.weight").grad.clone()


def same_as_one_by_one(trainer, policy, rows, collate) -> None:
    """A batch gives the mean over its rows, each computed alone without a weight, then weighted."""
    alone = [gradient(trainer, policy, collate([one._replace(weight=1.0)])) for one in rows]
    loss, slope = gradient(trainer, policy, collate(rows))
    losses, slopes = zip(*alone, strict=True)
    weights = np.array([one.weight for one in rows])
    assert loss == pytest.approx((weights * losses).mean(), 1e-5)
    mean = torch.stack([w * one for w, one in zip(weights, slopes, strict=True)]).mean(0)
    torch.testing.assert_close(slope, mean, rtol=1e-4, atol=1e-6)
    assert loss != pytest.approx(np.mean(losses), 1e-3)


@pytest.mark.parametrize("layout", [shared, separate])
@pytest.mark.parametrize(
    ("losses", "weighting"), [("dpo", "none"), ("dpo=1,sft=0.2", "none"), ("dpo", "wpo")]
)
def test_each_pairs_loss_is_multiplied_by_its_weight(
    weighted, policy, tmp_path, losses, weighting, layout
):
    pairs = CachedPairs(weighted, manifests.read(weighted))
    every = [pairs[i] for i in range(len(pairs))]
    rows = sorted(every, key=lambda pair: pair.weight)
    trainer = our_trainer(policy, pairs, tmp_path, losses, layout, weighting=weighting)
    same_as_one_by_one(trainer, policy, [*rows[:2], *rows[-2:]], layout)


def test_so_is_that_of_unpaired_rows(cache, policy, tmp_path, console):
    from reflogp.stages.train.data.cached_unpaired import CachedUnpaired

    good = [row([i], [i, 7, 8], None, kl=[3], confidence=i) for i in range(1, 4)]
    bad = [row([9 + i], None, [i, 4], kl=[2], confidence=i) for i in range(1, 3)]
    source = plant(tmp_path / "source", [*good, *bad], manifests.read(cache))
    made = run_filter(source, tmp_path / "w", FilterRules(weight_by="confidence"), console)
    rows = CachedUnpaired(tmp_path / "w", made, kl=True)
    trainer = our_trainer(policy, rows, tmp_path, "kto", unpaired)
    every = list(map(rows.__getitem__, range(len(rows))))
    assert len({one.weight for one in every}) == 3
    same_as_one_by_one(trainer, policy, every, unpaired)
    # the reference point is an estimate over all rows alike
    plain = [one._replace(weight=1.0) for one in every]
    assert trainer._reference_point(every) == trainer._reference_point(plain)


def config(cache: Path, output: Path, **options) -> TrainConfig:
    usual = {"batch_size": 4, "accumulation": 1, "max_steps": 3, "lora_r": 0, "warmup": 0}
    return TrainConfig(cache=cache, output=output, **usual | {"learning_rate": 1e-3} | options)


def curve(output: Path) -> list[float]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines)]


def test_accumulated_passes_are_one_batch(weighted, cache, tmp_path, console):
    run_train(config(weighted, tmp_path / "one"), console)
    run_train(config(weighted, tmp_path / "four", batch_size=1, accumulation=4), console)
    run_train(config(cache, tmp_path / "plain"), console)
    one, four = curve(tmp_path / "one"), curve(tmp_path / "four")
    assert four == pytest.approx(one, abs=1e-5)
    assert curve(tmp_path / "plain") != pytest.approx(one, abs=1e-2)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("four", "one"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_run_says_its_weights_and_evaluates_without_them(weighted, tmp_path, console):
    settings = config(weighted, tmp_path, max_steps=1, eval_fraction=0.4, learning_rate=1e-9)
    record = run_train(settings, console)
    said = manifests.read(weighted).row_weights
    assert record.weights == said
    assert f"| row weights | {said} |" in (tmp_path / "README.md").read_text()
    assert f"each loss is multiplied by the row's weight, {said}" in console.said
    # policy equals reference, so each loss is log 2 before it is weighted
    assert record.evaluation is not None
    assert record.evaluation.loss == pytest.approx(math.log(2), abs=1e-5)
    assert abs(record.first.loss - math.log(2)) > 1e-3


def test_other_weights_are_another_run(weighted, cache, tmp_path, console):
    other = tmp_path / "other"
    run_filter(cache, other, FilterRules(weight_by="similarity"), console)
    fingerprints = {
        run_train(config(one, tmp_path / "out", max_steps=1), console).fingerprint
        for one in (cache, weighted, other)
    }
    assert len(fingerprints) == 3
    assert json.loads((tmp_path / "out" / "reflogp_run.json").read_text())["weights"]["by"] == [
        "similarity"
    ]


def test_what_would_leave_the_weights_out_is_refused(weighted, tmp_path, console):
    with pytest.raises(InputError, match="the rows have weights, and the loss aot sorts the batch"):
        run_train(config(weighted, tmp_path, loss="aot"), console)
    with pytest.raises(InputError, match=r"weights \(by length-ratio: .*TRL's trainer does not"):
        CachedReference([weighted])
    with pytest.raises(InputError, match=r"weights \(by length-ratio: .*--format parquet"):
        run_export(weighted, "trl", tmp_path / "trl", None, console)
