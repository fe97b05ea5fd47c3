"""TRL training against the cache, next to TRL training with the reference in memory."""

import copy
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from typer.testing import CliRunner

import reflogp
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.cli import app
from reflogp.pipeline.publish import run_export
from reflogp.pipeline.run import run_precompute
from reflogp.stages.export.card import data_card
from reflogp.stages.interop.cached_reference import CachedReference, row_keys
from reflogp.stages.precompute.config import PrecomputeConfig
from tests import caches, planted
from tests.conftest import Silent

STEPS, ACCUMULATION = 4, 2
pytestmark = pytest.mark.usefixtures("cache_of_datasets")


def arguments(output: Path, **options) -> DPOConfig:
    settings = {
        "max_length": 192, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": STEPS, "learning_rate": 2e-4, "per_device_eval_batch_size": 4,
    }  # fmt: skip
    return DPOConfig(str(output), **settings | options)


@pytest.fixture(scope="module")
def pairs(few_preferences) -> datasets.Dataset:
    lines = few_preferences.read_text(encoding="utf-8").splitlines()
    return datasets.Dataset.from_list([json.loads(line) for line in lines])


def policy(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def against_cache(cache, checkpoint, pairs, tmp_path):
    """A function that makes a CachedDPOTrainer; what is given differs from the usual."""

    def make(args=None, **options):
        usual = {
            "model": policy(checkpoint), "cache": cache, "train_dataset": pairs,
            "processing_class": AutoTokenizer.from_pretrained(checkpoint),
        }  # fmt: skip
        return reflogp.CachedDPOTrainer(args=arguments(tmp_path, **args or {}), **usual | options)

    return make


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def count_forwards(model) -> list[None]:
    found: list[None] = []
    model.register_forward_hook(lambda *_: found.append(None))
    return found


@pytest.mark.parametrize(
    ("lora", "options"),
    [(False, {}), (True, {}), (False, {"ld_alpha": 0.5, "loss_type": ["ipo"]})],
    ids=["full", "lora", "ld"],
)
def test_losses_are_those_with_the_reference_in_memory_and_no_forward_is_its(
    against_cache, checkpoint, pairs, tmp_path, lora, options
):
    peft = LoraConfig(r=4, init_lora_weights=True, task_type="CAUSAL_LM") if lora else None
    options = options | {"learning_rate": 1e-2 if lora else 2e-4}
    evaluation = pairs.select(range(6))
    theirs = DPOTrainer(
        model=policy(checkpoint),
        args=arguments(tmp_path / "theirs", **options),
        train_dataset=pairs,
        eval_dataset=evaluation,
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        peft_config=copy.deepcopy(peft),
    )
    expected = losses(theirs)
    expected_evaluation = theirs.evaluate()["eval_loss"]

    model = policy(checkpoint)
    forwards = count_forwards(model)
    ours = against_cache(options, model=model, eval_dataset=evaluation, peft_config=peft)
    assert ours.ref_model is None
    found = losses(ours)
    assert len(forwards) == STEPS * ACCUMULATION  # with a reference it would be twice as many
    assert found == pytest.approx(expected, rel=1e-5)
    assert max(expected) - min(expected) > 0.005  # it moved, so the comparison says something
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected_evaluation, rel=1e-5)
    assert len(forwards) == STEPS * ACCUMULATION + 2  # six pairs, four at a time


def test_several_caches_and_data_sets_are_looked_up_together(
    against_cache, cache, checkpoint, pairs, few_preferences, tmp_path
):
    lines = few_preferences.read_text(encoding="utf-8").splitlines()
    other = json.loads(lines[0]) | {"chosen": [{"role": "assistant", "content": "Not there."}]}
    (tmp_path / "other.jsonl").write_text(json.dumps(other) + "\n")
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(tmp_path / "other.jsonl"), cache=tmp_path / "cache",
        engine="transformers", max_length=192, verify_sample=0,
    )  # fmt: skip
    run_precompute(config, Silent())
    both = {"seen": pairs.select(range(4)), "new": datasets.Dataset.from_list([other])}
    trainer = against_cache(cache=[cache, tmp_path / "cache"], eval_dataset=both)
    new = trainer.eval_dataset["new"][0]
    row = caches.rows(tmp_path / "cache")[0]
    assert new["ref_chosen_logps"] == row["ref_chosen_logp_sum"]
    assert new["ref_rejected_logps"] == row["ref_rejected_logp_sum"]
    assert {name for name in trainer.evaluate() if name.endswith("loss")} == {
        "eval_seen_loss",
        "eval_new_loss",
    }


def test_every_row_of_a_cache_is_found_by_its_tokens_and_no_other_row(cache):
    reference, rows = CachedReference([cache]), caches.rows(cache)
    table = datasets.Dataset.from_list(rows).with_format("arrow")[:]
    values, found = reference.find(row_keys(table, None))
    assert found.all()
    assert len(reference) == len(rows)
    sums = [[row["ref_chosen_logp_sum"], row["ref_rejected_logp_sum"]] for row in rows]
    np.testing.assert_array_equal(values, sums)
    for row in rows:  # the same pair with its responses the other way round is another row
        row["chosen_ids"], row["rejected_ids"] = row["rejected_ids"], row["chosen_ids"]
    table = datasets.Dataset.from_list(rows).with_format("arrow")[:]
    values, found = reference.find(row_keys(table, None))
    assert not found.any()
    assert np.isnan(values).all()


def test_another_maximum_length_is_refused_with_the_one_to_set(against_cache):
    with pytest.raises(
        InputError,
        match=r"row \d+ of the train data set .*cut to \d+ tokens by "
        r"--max-length 192, and here it has \d+.*Set DPOConfig\(max_length=192\)",
    ):
        against_cache({"max_length": 300})  # fmt: skip
    with pytest.raises(
        InputError,
        match=r"here its chosen response is cut to \d+ tokens by "
        r"DPOConfig\(max_length=150\).*Set DPOConfig\(max_length=192\)",
    ):
        against_cache({"max_length": 150})  # fmt: skip


def test_another_chat_template_is_refused_with_where_it_differs(against_cache, checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = tokenizer.chat_template.replace("['role'] }}", "['role'] }}!")
    with pytest.raises(InputError, match=r"its prompt differs at token \d+: '!.*chat template"):
        against_cache(processing_class=tokenizer)


def test_without_a_data_set_it_trains_on_the_rows_of_the_cache(against_cache, cache, pairs):
    rows = caches.rows(cache)
    expected = losses(against_cache(train_dataset=pairs.select([r["source_row"] for r in rows])))
    opened = reflogp.open(cache)
    # shorter than many rows: where the cache has not cut them, neither does TRL
    trainer = against_cache({"max_length": 64}, train_dataset=None, cache=opened)
    for part in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert trainer.train_dataset[part][:] == [row[part] for row in rows]
    assert losses(trainer) == expected

    parts = opened.to_dataset().train_test_split(test_size=4, seed=0)
    trainer = against_cache(train_dataset=parts["train"], eval_dataset=parts["test"])
    assert len(trainer.train_dataset) == len(rows) - 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_rows_that_trl_would_cut_otherwise_are_trained_on_as_they_are(
    against_cache, checkpoint, few_preferences, pairs, tmp_path
):
    cut = reflogp.precompute(
        reference=checkpoint, data=few_preferences, cache=tmp_path / "cut", max_length=96,
        truncate="prompt", engine="transformers", verify_sample=0,
    )  # fmt: skip
    assert any(row["prompt_truncated"] for row in cut)
    with pytest.raises(InputError, match="is not in the cache"):
        against_cache({"max_length": 96}, cache=cut, train_dataset=pairs)
    trainer = against_cache({"max_steps": 1}, cache=cut, train_dataset=None)
    assert losses(trainer) == pytest.approx([np.log(2)], abs=1e-4)


def test_which_rows_to_train_on_is_never_guessed(against_cache, cache, pairs):
    with pytest.raises(InputError, match="train_dataset: 2 caches are given"):
        against_cache(cache=[cache, cache], train_dataset=None)
    with pytest.raises(InputError, match="eval_dataset: without a train_dataset"):
        against_cache(train_dataset=None, eval_dataset=pairs)


def test_rows_that_are_not_in_the_cache_are_refused_or_dropped_and_counted(against_cache, pairs):
    strange = {
        name: [{"role": role, "content": f"Something else {number}"}]
        for number, (name, role) in enumerate(
            [("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")]
        )
    }
    more = datasets.Dataset.from_list([strange, *pairs.to_list()])
    with pytest.raises(
        InputError,
        match=r"row 0 of the train data set \(chosen: 'Something else 1"
        r".*no row there has its prompt.*1 of 23 rows.*missing='drop'",
    ):
        against_cache(train_dataset=more)  # fmt: skip
    with pytest.warns(UserWarning, match=r"1 of 23 rows of the train data set are not in"):
        trainer = against_cache(train_dataset=more, missing="drop")
    assert len(trainer.train_dataset) == 22
    with pytest.raises(InputError, match="1 of 1 rows"):
        against_cache(train_dataset=datasets.Dataset.from_list([strange]), missing="drop")


def test_a_policy_that_was_not_scored_is_refused_at_its_first_batch(
    against_cache, other_checkpoint
):
    trainer = against_cache(model=policy(other_checkpoint))
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(InputError, match=r"the policy is not what the cache was scored with"):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    knowingly = against_cache({"max_steps": 1}, model=policy(other_checkpoint), allow_mismatch=True)
    assert len(losses(knowingly)) == 1


def test_a_policy_in_bfloat16_passes_for_what_was_scored_in_float32(against_cache):
    assert losses(against_cache({"max_steps": 1, "bf16": True})) == pytest.approx([0.69], abs=0.1)


def test_what_contradicts_a_cache_is_refused(against_cache, checkpoint, pairs):
    with pytest.raises(InputError, match=r"ref_model: the cache stands in its place"):
        against_cache(ref_model=policy(checkpoint))
    with pytest.raises(InputError, match=r"the train data set is streamed"):
        against_cache(train_dataset=pairs.to_iterable_dataset())
    with pytest.warns(FutureWarning), pytest.raises(InputError, match="keep_end"):
        against_cache({"truncation_mode": "keep_end"})


def test_a_release_of_trl_with_another_precompute_is_refused(against_cache, monkeypatch):
    monkeypatch.delattr(DPOTrainer, "_precompute_ref_logps")
    with pytest.raises(ReflogpError, match=r"TRL .* has no DPOTrainer._precompute_ref_logps"):
        against_cache()


def test_caches_of_two_references_are_refused(cache, other_checkpoint, few_preferences, tmp_path):
    config = PrecomputeConfig(
        reference=str(other_checkpoint), data=str(few_preferences), cache=tmp_path,
        engine="transformers", max_length=64, verify_sample=0,
    )  # fmt: skip
    run_precompute(config, Silent())
    with pytest.raises(InputError, match="the caches are of different references"):
        CachedReference([cache, tmp_path])


def test_a_damaged_shard_is_refused(cache, tmp_path):
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob("shard-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=rf"{shard.name}: damaged"):
        CachedReference([tmp_path])


def test_both_trainers_train_on_the_export_as_on_the_data_itself(
    against_cache, cache, checkpoint, manifest, pairs, tmp_path
):
    run_export(cache, "trl", tmp_path / "export", None, Silent())
    files = str(tmp_path / "export" / "data" / "*.parquet")
    exported = datasets.load_dataset("parquet", data_files=files, split="train")
    names: dict[str, type] = {}
    code = data_card(manifest, "trl").split("```python\n")[1].split("```")[0]
    exec(code, names)  # noqa: S102
    alone = names["PrecomputedDPOTrainer"](
        model=policy(checkpoint),
        args=arguments(tmp_path, precompute_ref_log_probs=True, max_length=None),
        train_dataset=exported,
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    order = [row["source_row"] for row in caches.rows(cache)]
    expected = losses(against_cache(train_dataset=pairs.select(order)))
    assert losses(against_cache(train_dataset=exported)) == expected
    assert losses(alone) == expected


DOCUMENT = Path(__file__).parents[2] / "docs" / "trl.md"


def test_what_the_documentation_says_to_type_works(
    checkpoint, few_preferences, tmp_path, monkeypatch
):
    lines = few_preferences.read_text(encoding="utf-8").splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    shutil.copytree(checkpoint, tmp_path / "MODEL")
    config = tmp_path / "MODEL" / "config.json"
    positions = json.loads(config.read_text()) | {"max_position_embeddings": 1024}
    config.write_text(json.dumps(positions))
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("reflogp ")]
    for command in commands[:1]:
        typed([*command.split()[1:], "--engine", "transformers"])
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        code = code.replace('output_dir="model"', 'output_dir="model", use_cpu=True, max_steps=1')
        exec(code, names)  # noqa: S102
        assert names.pop("trainer").state.global_step > 0
    *exports, hub = commands[1:]
    for command in exports:
        typed(command.split()[1:])
    assert len(datasets.load_dataset("pairs-parquet", split="train")) == 4
    assert "--format hub" in hub
    path = str(DOCUMENT.parents[1] / "examples" / "trl_with_cache.py")
    monkeypatch.setattr(sys, "argv", [path, "MODEL", "pairs.jsonl", "cache", "trained"])
    runpy.run_path(path, run_name="__main__")
    assert (tmp_path / "trained" / "adapter_model.safetensors").is_file()


def typed(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def masked(cache, checkpoint, manifest, tmp_path_factory) -> Path:
    """Ten rows of the cache; in most of their responses a third of the tokens is context."""
    every = []
    for number, old in enumerate(caches.rows(cache)[:10]):
        sides = ("chosen", "rejected")
        masks = [[i % 3 != number % 3 for i in range(len(old[f"{s}_ids"]))] for s in sides]
        marks = (None if number % 4 == 0 else masks[0], masks[1], None)
        new = planted.row(old["prompt_ids"], old["chosen_ids"], old["rejected_ids"], masks=marks)
        for side, mask in zip(sides, marks, strict=False):
            pick = np.ones(len(old[f"{side}_ids"])) if mask is None else np.array(mask)
            logps = np.float32(old[f"ref_{side}_logps"] * pick)
            new |= {f"ref_{side}_logps": logps.tolist()}
            new |= {f"ref_{side}_logp_sum": float(logps.sum(dtype=np.float64))}
        every.append(new)
    return planted.plant(tmp_path_factory.mktemp("masked"), every, manifest)


def test_trl_trains_on_the_tokens_that_a_mask_marks_alone(against_cache, masked, checkpoint):
    opened = reflogp.open(masked)
    trainer = against_cache(cache=masked, train_dataset=None)
    examples = [trainer.train_dataset[i] for i in range(len(opened))]
    batch = trainer.data_collator(examples)
    expected = [
        [0] * len(one["prompt_ids"]) + (one[f"{side}_mask"] or [1] * len(one[f"{side}_ids"]))
        for side in ("chosen", "rejected")
        for one in examples
    ]
    length = batch["completion_mask"].shape[1]
    assert batch["completion_mask"].tolist() == [
        [int(mark) for mark in one] + [0] * (length - len(one)) for one in expected
    ]
    # the policy is the reference: with a token too many or too few it would not start at ln 2
    assert losses(trainer)[0] == pytest.approx(np.log(2), abs=1e-4)
    options = {"ld_alpha": 0.5, "loss_type": ["ipo"], "max_steps": 1}
    shared = against_cache(options, cache=masked, train_dataset=opened.to_dataset())
    start = 1 / (2 * shared.beta)
    assert losses(shared) == pytest.approx([start**2], rel=1e-3)


def test_rows_without_the_mask_of_the_cache_are_refused(against_cache, masked):
    whole = reflogp.open(masked).to_dataset().remove_columns(["chosen_mask", "rejected_mask"])
    with pytest.raises(InputError, match=r"has its tokens, but a mask says.*leave train_dataset"):
        against_cache(cache=masked, train_dataset=whole)


def test_trls_form_is_refused_for_rows_with_masks_and_parquet_has_them(masked, tmp_path):
    with pytest.raises(InputError, match=r"tokens that the policy does not write.*parquet"):
        run_export(masked, "trl", tmp_path / "trl", None, Silent())
    assert not (tmp_path / "trl" / "data").exists()
    run_export(masked, "parquet", tmp_path / "parquet", None, Silent())
    files = str(tmp_path / "parquet" / "data" / "*.parquet")
    exported = datasets.load_dataset("parquet", data_files=files, split="train")
    for one, other in zip(exported, reflogp.open(masked), strict=True):
        for side in ("chosen", "rejected"):
            mask = other[f"{side}_mask"]
            assert one[f"{side}_mask"] == (None if mask is None else mask.tolist())
            marked = np.array(one[f"ref_{side}_logps"]) != 0
            assert mask is None or marked.tolist() == mask.tolist()
