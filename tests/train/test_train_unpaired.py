"""Training on responses that are good or bad by themselves, beside TRL's KTOTrainer."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.config import build
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.batches import unpaired
from reflogp.stages.train.data.cached_unpaired import CachedUnpaired
from reflogp.stages.train.loop.metrics import Means, completed, metrics
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.losses.inputs import UnpairedLogps
from reflogp.stages.train.losses.objective import UnpairedLoss, objective
from reflogp.stages.train.losses.registry import LOSSES
from reflogp.stages.train.model.policy import load_policy
from tests.conftest import Silent
from tests.precompute.conftest import save
from tests.precompute.test_kl_completions import unpaired as unpaired_examples


def made(checkpoint: Path, folder: Path, **options: object) -> Path:
    """A cache of the responses of ten pairs, one by one."""
    config = PrecomputeConfig.model_validate(
        {
            "reference": str(checkpoint), "cache": folder / "cache", "engine": "transformers",
            "data": str(save(folder / "unpaired.jsonl", unpaired_examples())), "max_length": 160,
            "shard_tokens": 3000, "verify_sample": 0, **options,
        }
    )  # fmt: skip
    run_precompute(config, Silent())
    return config.cache


@pytest.fixture(scope="module")
def crossed(checkpoint, tmp_path_factory) -> Path:
    """An unpaired cache with KL completions."""
    return made(checkpoint, tmp_path_factory.mktemp("crossed"))


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory) -> Path:
    """An unpaired cache without."""
    return made(checkpoint, tmp_path_factory.mktemp("plain"), kl_completions=False)


def config(cache: Path, output: Path, **options: object) -> TrainConfig:
    plainly = {"loss": "kto", "batch_size": 4, "accumulation": 1, "max_steps": 3, "warmup": 0}
    return build(TrainConfig, {}, {"cache": cache, "output": output} | plainly | options)


def steps(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def trainer_of(policy, rows, output, losses) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=policy,
        args=TrainingArguments(str(output), use_cpu=True, report_to="none"),
        train_dataset=rows,
        collate=unpaired,
        loss=objective(losses, beta=0.1),
    )


def test_loss_and_metrics_equal_trls_on_the_same_rows(crossed, checkpoint, tmp_path):
    rows = CachedUnpaired(crossed, manifests.read(crossed), kl=True)
    every = [rows[i] for i in range(len(rows))]
    examples = [
        {
            "prompt_ids": row.prompt_ids.tolist(), "completion_ids": row.response_ids.tolist(),
            "KL_completion_ids": row.mismatched.response_ids.tolist(), "label": row.desirable,
        }
        for row in every if row.mismatched is not None
    ]  # fmt: skip
    theirs = KTOTrainer(
        model=flatter(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)),
        ref_model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        args=KTOConfig(
            output_dir=str(tmp_path), max_length=160, beta=0.1, bf16=False, use_cpu=True,
            report_to="none", gradient_checkpointing=False, per_device_train_batch_size=2,
        ),
        train_dataset=datasets.Dataset.from_list(unpaired_examples()[:2]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )  # fmt: skip
    collator = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=160)
    expected = theirs._compute_loss(theirs.model.train(), collator(examples), return_outputs=False)

    policy = flatter(
        load_policy(Checkpoint(checkpoint, None, "float32"), config(crossed, tmp_path, lora_r=0))
    )
    trainer = trainer_of(policy, rows, tmp_path, {"kto": 1.0})
    batch, kl = unpaired(every), trainer._reference_point(every)
    assert kl is not None
    assert not kl.requires_grad
    batch["kl"] = kl
    loss = trainer.compute_loss(policy, {"batch": batch, "weight": 1.0})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = completed(trainer._metrics.take())
    for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen",
                 "logps/rejected"):  # fmt: skip
        assert found[name] == pytest.approx(theirs._metrics["train"][name][-1], rel=1e-4), name
    assert found["kl"] > 1


def flatter(model: Any) -> Any:
    """`model` with another distribution: likelier to write what it would not, so its KL is high."""
    with torch.no_grad():
        model.lm_head.weight.mul_(0.9)
    return model


def test_a_lora_run_learns_and_says_what_it_was(crossed, console, tmp_path):
    settings = config(
        crossed, tmp_path, batch_size=5, accumulation=2, max_steps=-1, epochs=8,
        learning_rate=1e-2, lora_targets="q_proj,v_proj",
    )  # fmt: skip
    record = run_train(settings, console)
    assert record.kind == "unpaired"
    assert record.first.loss == pytest.approx(0.5, abs=1e-4)
    assert record.last.loss < 0.4
    assert record.last.margin > 0.5
    assert record.last.accuracy > 0.8
    logged = steps(tmp_path)
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-2)
    assert max(step["kl"] for step in logged) > 0
    assert {"logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"} <= set(
        logged[-1]
    )
    assert "unpaired rows" in (tmp_path / "README.md").read_text()
    assert "Trained with KTO" in (tmp_path / "README.md").read_text()
    assert console.warned == []


def test_a_step_does_not_depend_on_the_passes_that_it_is_made_in(crossed, console, tmp_path):
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        output = tmp_path / str(batch)
        update = {"batch_size": batch, "accumulation": accumulation, "lora_r": 0}
        run_train(config(crossed, output, learning_rate=2e-3, **update), console)
        found.append([(step["loss"], step["kl"]) for step in steps(output)])
    assert found[1] == [pytest.approx(step, rel=1e-4, abs=1e-4) for step in found[0]]
    assert found[0][-1][1] > 0.01


@pytest.mark.parametrize("loss", ["kto_no_kl", "apo_zero_unpaired", "bco_unpaired=1,kto_no_kl=0.5"])
def test_losses_without_a_reference_point_train_on_either_cache(
    crossed, plain, loss, console, tmp_path
):
    found = []
    for cache in (crossed, plain):
        run_train(config(cache, tmp_path / cache.parent.name, loss=loss), console)
        logged = steps(tmp_path / cache.parent.name)
        assert {step["kl"] for step in logged} == {0}
        found.append(logged[0]["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-4)


def test_held_out_rows_are_evaluated_with_a_reference_point_of_their_own(
    crossed, console, tmp_path
):
    record = run_train(config(crossed, tmp_path, eval_fraction=0.3, learning_rate=5e-3), console)
    assert record.evaluation is not None
    assert record.pairs + record.evaluated_pairs == manifests.read(crossed).counts.rows
    (*_, last) = (step for step in steps(tmp_path) if "eval_loss" in step)
    assert {"eval_kl", "eval_rewards/margins", "eval_rewards/accuracies"} <= set(last)


def test_means_count_each_row_on_its_own_side_and_a_missing_side_as_zero():
    means = Means()
    for ratios, desirable in (([1.0, 3.0, 5.0], [True, True, False]), ([8.0], [True])):
        policy = torch.tensor(ratios, dtype=torch.float64)
        rows = UnpairedLogps(policy, torch.zeros_like(policy), torch.full_like(policy, 7),
                             torch.tensor(desirable), torch.tensor(2.0))  # fmt: skip
        result = UnpairedLoss(policy, policy, policy - 2)
        means.add(metrics(result, rows, counted=True))
        means.add(metrics(result, rows, counted=False))
    found = completed(means.take())
    assert found["rewards/chosen"] == 4.0
    assert found["rewards/rejected"] == 5.0
    assert found["rewards/margins"] == -1.0
    assert found["rewards/accuracies"] == 0.5
    assert found["kl"] == 2.0
    assert found["lengths/chosen"] == 7.0
    one = torch.ones(2)
    good = UnpairedLogps(one, one, one, torch.tensor([True, True]), torch.tensor(0.0))
    means.add(metrics(UnpairedLoss(one, one, one), good, counted=True))
    found = completed(means.take())
    assert "rewards/rejected" not in found
    assert found["rewards/margins"] == 1.0


def test_a_loss_and_a_cache_that_do_not_fit_are_refused_with_the_losses_that_do(
    cache, crossed, plain, console, tmp_path
):
    run_train(config(crossed, tmp_path), console)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    every = "kto, kto_no_kl, apo_zero_unpaired, bco_unpaired"
    for source, loss, message in (
        (crossed, "dpo", rf"unpaired.*the loss dpo need chosen and rejected.*--loss {every};"),
        (crossed, "dpo=1,sft=0.2", r"the losses dpo, sft need chosen"),
        (cache, "kto", rf"of pairs; the loss kto need.*--loss {', '.join(LOSSES)};"),
        (plain, "kto", r"--no-kl-completions, which the loss kto need.*--loss kto_no_kl, apo_z"),
    ):
        with pytest.raises(InputError, match=message):
            run_train(config(source, tmp_path, loss=loss), console)
    with pytest.raises(InputError, match=r"--eval-cache.*kind"):
        run_train(config(crossed, tmp_path, eval_cache=cache), console)
    with pytest.raises(InputError, match=r"plain.*--no-kl-completions"):
        run_train(config(crossed, tmp_path, eval_cache=plain), console)
    # an earlier run's files stay
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kto=1,dpo=1"}, "the loss dpo takes pairs and kto takes unpaired rows"),
        ({"weighting": "wpo"}, "weights pairs, and the loss kto takes unpaired rows"),
        ({"loss_args": "desirable_weight=-1"}, "desirable_weight: input should be greater"),
    ],
)
def test_options_that_are_not_for_unpaired_rows_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config(tmp_path, tmp_path, **options)


def test_a_shared_layout_of_unpaired_rows_is_refused(crossed, console, tmp_path):
    with pytest.raises(InputError, match=r"--layout shared: unpaired rows have one response"):
        run_train(config(crossed, tmp_path, layout="shared"), console)
