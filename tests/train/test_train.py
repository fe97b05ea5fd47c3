"""Training against the cache, next to training with the reference in memory (TRL's DPOTrainer)."""

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.run import run_train
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.batches import separate, shared
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.losses.loss_spec import loss_weights
from reflogp.stages.train.losses.objective import objective
from reflogp.stages.train.losses.registry import LOSSES
from reflogp.stages.train.model.policy import load_policy
from reflogp.stages.train.result.card import model_card


def trl_trainer(cache, policy, reference, data, output, **options):
    """TRL's trainer over the cached rows, in the order of the cache, reference in memory."""
    raw = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    manifest = manifests.read(cache)
    order = [
        row["source_row"]
        for shard in manifest.shards
        for row in read_shard(cache / shard.file, ["source_row"]).to_pylist()
    ]
    rows = [{k: raw[i][k] for k in ("prompt", "chosen", "rejected")} for i in order]
    config = DPOConfig(
        output_dir=str(output), max_length=192, beta=0.1, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", logging_steps=1, save_strategy="no",
        disable_tqdm=True, seed=42, data_seed=42, **options,
    )  # fmt: skip
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )


def our_metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("dpo", {}),
        ("dpo", {"use_weighting": True}),
        ("ipo", {"loss_type": ["ipo"]}),
        ("ld_dpo", {"ld_alpha": 0.5}),
    ],
)
def test_loss_and_rewards_equal_trls_on_the_same_batch(
    cache, checkpoint, other_checkpoint, few_preferences, tmp_path, loss, options
):
    # another policy than the reference, so that margins are not zero
    theirs = trl_trainer(cache, other_checkpoint, checkpoint, few_preferences, tmp_path, **options)
    inputs = theirs.data_collator(list(theirs.train_dataset))
    expected = theirs._compute_loss(theirs.model.train(), inputs, return_outputs=False).item()

    pairs = CachedPairs(cache, manifests.read(cache), tokens=loss == "ld_dpo")
    every = [pairs[i] for i in range(len(pairs))]
    ours = separate(every)["inputs"]
    real = inputs["attention_mask"].bool()
    assert torch.equal(ours["input_ids"][real], inputs["input_ids"][real])
    policy = load_policy(
        Checkpoint(other_checkpoint, None, "float32"), config(cache, tmp_path, lora_r=0)
    )
    weighting = "wpo" if "use_weighting" in options else "none"
    trainer = our_trainer(policy, pairs, tmp_path, loss, weighting=weighting)
    for layout in (separate, shared):
        batch = {"batch": layout(every), "weight": 1.0}
        assert trainer.compute_loss(policy, batch).item() == pytest.approx(expected, rel=1e-5)
        mine = trainer._metrics.take()
        if loss == "ld_dpo":
            continue  # TRL's rewards are then of the weighted log-probs
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert mine[name] == pytest.approx(
                theirs._metrics["train"][name][-1], rel=1e-5, abs=1e-4
            ), name
    assert abs(expected - math.log(2)) > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_on_a_batch_of_the_cache(pairs_with_tokens, tiny_policy, tmp_path, loss):
    trainer = our_trainer(tiny_policy, pairs_with_tokens, tmp_path, loss)
    tiny_policy.zero_grad()
    batch = shared([pairs_with_tokens[i] for i in range(4)])
    value = trainer.compute_loss(tiny_policy, {"batch": batch, "weight": 1.0})
    value.backward()
    assert value.isfinite()
    norms = [p.grad.norm() for p in tiny_policy.parameters() if p.grad is not None]
    assert torch.stack(norms).isfinite().all()
    assert max(norms) > 0


@pytest.fixture(scope="module")
def pairs_with_tokens(cache):
    return CachedPairs(cache, manifests.read(cache), tokens=True)


@pytest.fixture(scope="module")
def tiny_policy(cache, other_checkpoint, tmp_path_factory):
    return load_policy(
        Checkpoint(other_checkpoint, None, "float32"),
        config(cache, tmp_path_factory.mktemp("policy"), lora_r=0),
    )


def test_a_run_with_two_losses_and_arguments_says_so_wherever_it_is_recorded(
    cache, console, tmp_path
):
    settings = config(
        cache, tmp_path, loss="rdpo=1,sft=0.2", loss_args="alpha=0.02", weighting="wpo"
    )
    record = run_train(settings, console)
    assert record.settings["loss"] == "rdpo=1,sft=0.2"
    assert record.settings["loss_args"] == {"alpha": 0.02}
    card = (tmp_path / "README.md").read_text()
    assert "Trained with RDPO + 0.2 SFT" in card
    assert "beta=0.1, alpha=0.02, weighting=wpo" in card
    moved = record.model_copy(update={"policy": "/models: mine #1"})
    data = ModelCard(model_card(settings, manifests.read(cache), moved)).data.to_dict()
    assert data["base_model"] == moved.policy
    assert run_train(settings, console) == record
    other = config(cache, tmp_path, loss="rdpo=1,sft=0.2", loss_args="alpha=0.03", weighting="wpo")
    assert run_train(other, console).fingerprint != record.fingerprint


def test_margins_per_token_are_rewards_over_lengths(pairs_with_tokens, tiny_policy, tmp_path):
    trainer = our_trainer(tiny_policy, pairs_with_tokens, tmp_path)
    pair = next(
        pair for pair in pairs_with_tokens if len(pair.chosen_ids) != len(pair.rejected_ids)
    )
    trainer.compute_loss(tiny_policy, {"batch": shared([pair]), "weight": 1.0})
    found = trainer._metrics.take()
    chosen = found["rewards/chosen"] / len(pair.chosen_ids)
    rejected = found["rewards/rejected"] / len(pair.rejected_ids)
    assert found["rewards/margins_per_token"] == pytest.approx(chosen - rejected)
    assert found["rewards/accuracies_per_token"] == (chosen > rejected)


def test_a_run_with_a_loss_of_tokens_reads_them_from_the_cache(cache, console, tmp_path):
    record = run_train(config(cache, tmp_path, loss="ld_dpo"), console)
    assert record.first.loss == pytest.approx(math.log(2), abs=1e-5)


def test_a_loss_without_a_reference_is_not_warned_of_for_its_first_margin(cache, console, tmp_path):
    record = run_train(config(cache, tmp_path, loss="simpo"), console)
    assert abs(record.first.margin) > 1e-3
    assert record.first_margin_noise is None
    assert console.warned == []


def our_trainer(policy, pairs, output, losses="dpo", collate=shared, weighting="none", **arguments):
    return PreferenceTrainer(
        model=policy,
        args=TrainingArguments(str(output), use_cpu=True, report_to="none"),
        train_dataset=pairs,
        collate=collate,
        loss=objective(loss_weights(losses), beta=0.1, arguments=arguments, weighting=weighting),
        squares=weighting == "wpo",
    )


def config(cache, output, **options) -> TrainConfig:
    return TrainConfig(
        cache=cache, output=output, batch_size=2, accumulation=2, max_steps=6, **options
    )


def test_the_loss_curve_equals_training_with_the_reference_in_memory(
    cache, checkpoint, few_preferences, console, tmp_path
):
    settings = config(cache, tmp_path / "ours", lora_r=0, learning_rate=2e-4, warmup=0)
    run_train(settings, console)
    theirs = trl_trainer(
        cache, checkpoint, checkpoint, few_preferences, tmp_path / "theirs",
        per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6,
        learning_rate=2e-4, lr_scheduler_type="linear", warmup_steps=0, max_grad_norm=1.0,
    )  # fmt: skip
    theirs.train()
    expected = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    found = [step["loss"] for step in our_metrics(tmp_path / "ours")]
    assert len(found) == 6
    assert found == pytest.approx(expected, rel=1e-5)
    assert max(expected) - min(expected) > 0.01  # it moved, so the comparison says something


def test_at_the_first_step_policy_and_cache_agree(cache, console, tmp_path):
    run_train(config(cache, tmp_path), console)
    first = our_metrics(tmp_path)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["rewards/margins"]) < 1e-4
    assert abs(first["rewards/chosen"]) < 1e-4


def test_a_policy_that_does_not_score_what_the_cache_says_is_stopped_before_the_first_step(
    cache, checkpoint, console, tmp_path, monkeypatch
):
    run_train(config(cache, tmp_path / "same"), console)
    assert console.warned == []

    def changed(*arguments):  # as a wrong dtype, a patched forward or another tokenizer would
        policy = load_policy(*arguments)
        with torch.no_grad():
            policy.get_parameter("base_model.model.model.norm.weight").mul_(1.05)
        return policy

    monkeypatch.setattr("reflogp.stages.train.stage.load_policy", changed)
    with pytest.raises(ReflogpError, match=r"16 sampled responses differ by .*reflogp verify"):
        run_train(config(cache, tmp_path / "other"), console)
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
    run_train(config(cache, tmp_path / "other", allow_mismatch=True), console)
    assert "do not agree" in console.warned[-1]


def test_a_lora_run_learns_and_leaves_a_loadable_adapter(cache, checkpoint, console, tmp_path):
    settings = TrainConfig(
        cache=cache, output=tmp_path, batch_size=4, accumulation=1, epochs=4, learning_rate=1e-2
    )
    record = run_train(settings, console)
    assert record.steps == 24
    assert record.last.loss < record.first.loss - 0.1
    assert record.last.margin > 0.2
    assert record.last.accuracy > 0.9
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)  # transformers finds the base itself
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(loaded(ids).logits, base(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["base_model"], data["library_name"]) == (str(checkpoint), "peft")
    assert not list(tmp_path.glob("*.bin"))  # training_args.bin would be a pickle


def test_full_fine_tuning_saves_the_checkpoints_dtype(cache, console, tmp_path):
    run_train(config(cache, tmp_path, lora_r=0), console)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.float32


def test_the_frozen_reference_is_never_loaded_in_training(cache, console, tmp_path, monkeypatch):
    loaded = []
    original = AutoModelForCausalLM.from_pretrained.__func__

    def counting(cls, *arguments, **options):
        loaded.append(arguments[0])
        return original(cls, *arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(counting))
    run_train(config(cache, tmp_path), console)
    assert len(loaded) == 1


def test_another_policy_than_the_reference_is_refused(cache, other_checkpoint, console, tmp_path):
    settings = config(cache, tmp_path, policy=str(other_checkpoint))
    with pytest.raises(InputError, match=r"weights differ.*--allow-mismatch"):
        run_train(settings, console)
    knowingly = config(cache, tmp_path, policy=str(other_checkpoint), allow_mismatch=True)
    run_train(knowingly, console)
    assert "weights differ" in console.warned[0]


def test_another_policy_is_another_run(cache, checkpoint, other_checkpoint, console, tmp_path):
    records = [
        run_train(config(cache, tmp_path, policy=str(policy), allow_mismatch=True), console)
        for policy in (checkpoint, other_checkpoint)
    ]
    assert records[0].fingerprint != records[1].fingerprint
    next(tmp_path.glob("*.safetensors")).unlink()
    run_train(config(cache, tmp_path, policy=str(other_checkpoint), allow_mismatch=True), console)
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_full_model_is_not_left_beside_an_earlier_adapter(cache, console, tmp_path):
    run_train(config(cache, tmp_path), console)
    run_train(config(cache, tmp_path, lora_r=0), console)
    assert not list(tmp_path.glob("adapter_*"))
    run_train(config(cache, tmp_path), console)
    assert not list(tmp_path.glob("model*.safetensors"))


def test_a_run_that_diverges_stops_and_saves_nothing(cache, console, tmp_path):
    with pytest.raises(ReflogpError, match=r"training has diverged.*--learning-rate"):
        run_train(config(cache, tmp_path, lora_r=0, learning_rate=1e20, warmup=0), console)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "reflogp_run.json").exists()


def test_unknown_lora_targets_are_refused(cache, console, tmp_path):
    with pytest.raises(InputError, match=r"--lora-targets.*nothing"):
        run_train(config(cache, tmp_path, lora_targets="nothing"), console)


def test_padding_and_order_do_not_change_a_pairs_loss(cache, checkpoint, tmp_path):
    pairs = CachedPairs(cache, manifests.read(cache))
    policy = load_policy(Checkpoint(checkpoint, None, "float32"), config(cache, tmp_path, lora_r=0))
    # a policy that is not the reference any more
    with torch.no_grad():
        policy.get_parameter("lm_head.weight").mul_(1.1)
    together = [pairs[i] for i in range(8)]
    found = []
    for layout in (separate, shared):
        trainer = our_trainer(policy, pairs, tmp_path, collate=layout)
        found.append(trainer.logps(together).margins.tolist())
        alone = [trainer.logps([pair]).margins.item() for pair in reversed(together)]
        found.append(alone[::-1])
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-4)
    assert max(map(abs, found[0])) > 0.1
