"""Options of other trainers: answered with ours, and whole configurations converted."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.cli import app, main
from reflogp.pipeline.config import build, load_file
from reflogp.pipeline.foreign import NAMES, advice_on
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig

OPTIONS = PrecomputeConfig.model_fields | TrainConfig.model_fields
TRL = {
    "model_name_or_path": "org/model", "dataset_name": "org/pairs", "output_dir": "out",
    "learning_rate": 5e-6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3,
    "num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05,
    "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "bf16": True, "use_peft": True,
    "lora_r": 16, "lora_target_modules": ["q_proj", "v_proj"], "logging_steps": 10,
    "dataloader_num_workers": 4, "report_to": ["wandb", "tensorboard"], "use_weighting": False,
}  # fmt: skip
AXOLOTL = {
    "base_model": "org/model", "rl": "ipo", "rl_beta": 0.05, "adapter": "qlora",
    "datasets": [
        {"path": "pairs.jsonl", "split": "train", "field_messages": "talk", "field_chosen": "good"}
    ],
    "sequence_len": 2048, "micro_batch_size": 2, "gradient_accumulation_steps": 8,
    "lr_scheduler": "constant_with_warmup", "learning_rate": 2e-5, "output_dir": "out",
}  # fmt: skip
LLAMA_FACTORY = {
    "model_name_or_path": "org/model", "stage": "dpo", "finetuning_type": "full",
    "pref_beta": 0.2, "pref_loss": "orpo", "dataset": "dpo_en_demo", "cutoff_len": 512,
    "output_dir": "out", "warmup_steps": 0.1, "report_to": "none",
}  # fmt: skip


@pytest.fixture
def convert(tmp_path):
    def run(content, *arguments):
        path = tmp_path / "theirs.yaml"
        path.write_text(yaml.safe_dump(content))
        result = CliRunner().invoke(app, ["convert-config", str(path), *arguments])
        assert result.exit_code == 0, result.exception
        ours = tmp_path / "run.yaml"
        ours.write_text(result.output)
        remarks = [line[2:] for line in result.output.splitlines() if line.startswith("# ")]
        return load_file(ours), remarks

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_foreign_name_leads_to_an_option_that_exists(name):
    ours = NAMES[name]
    assert ours.option in OPTIONS or (ours.option == "" and ours.meaning)
    for named in re.findall(r"--([a-z-]+)", ours.meaning):
        assert named.replace("-", "_") in OPTIONS | {"list_losses": None}


def test_a_name_of_ours_is_not_taken_for_theirs():
    assert not set(NAMES) & set(OPTIONS) - {"report_to"}


def test_a_foreign_option_is_answered_with_ours(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reflogp", "train", "--per_device_train_batch_size", "4"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--per_device_train_batch_size: This is --batch-size here." in capsys.readouterr().err


def test_a_foreign_key_in_yaml_is_answered_with_ours(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {gradient_accumulation_steps: 4}")
    with pytest.raises(InputError, match=r"This is --accumulation here\. Theirs counts"):
        load_file(path)
    path.write_text("base_model: org/model")
    with pytest.raises(InputError, match=r"convert-config .*run\.yaml` converts the file"):
        load_file(path)


def test_a_file_of_trl(convert):
    sections, remarks = convert(TRL, "--processes", "8")
    first = build(PrecomputeConfig, sections["precompute"], {})
    second = build(TrainConfig, {"cache": "cache"} | sections["train"], {})
    assert (first.reference, first.data, first.dtype) == ("org/model", "org/pairs", "bfloat16")
    assert second.losses == {"dpo": 1.0, "sft": 0.2}
    assert second.batch_size * second.accumulation == 4 * 3 * 8
    assert (second.epochs, second.schedule, second.warmup) == (2, "cosine", 0.05)
    assert (second.lora_r, second.lora_targets) == (16, "q_proj,v_proj")
    assert second.trackers == ["wandb", "tensorboard"]
    assert second.weighting == "none"
    assert any(remark.startswith("dataloader_num_workers: not carried over") for remark in remarks)
    assert not any("learning_rate" in remark for remark in remarks)


def test_a_file_of_axolotl(convert):
    sections, remarks = convert(AXOLOTL)
    first = build(PrecomputeConfig, sections["precompute"], {})
    second = build(TrainConfig, {"cache": "cache"} | sections["train"], {})
    assert first.columns == {"prompt": "talk", "chosen": "good"}
    assert (first.max_length, first.adapter) == (2048, None)
    assert (second.loss, second.beta, second.quantize) == ("ipo", 0.05, "nf4")
    assert second.schedule == "constant"
    assert second.lora_r > 0
    assert any(remark.startswith("epochs: not in the file") for remark in remarks)
    assert any("give --processes" in remark for remark in remarks)


def test_a_file_of_llama_factory(convert):
    sections, remarks = convert(LLAMA_FACTORY)
    second = build(TrainConfig, {"cache": "cache"} | sections["train"], {})
    assert (second.loss, second.beta, second.lora_r) == ("orpo", 0.2, 0)
    assert (second.warmup, second.trackers) == (0.1, [])
    assert "data" not in sections["precompute"]
    assert any(remark.startswith("dataset: ") for remark in remarks)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_accumulation_steps", "auto"),
        ("gradient_accumulation_steps", None),
        ("gradient_accumulation_steps", [4]),
        ("warmup_steps", "10%"),
        ("datasets", "pairs.jsonl"),
        ("datasets", ["pairs.jsonl"]),
        ("loss_type", []),
        ("learning_rate", "auto"),
        ("no such\nkey: 1", 3),
        (7, 3),
    ],
)
def test_whatever_a_value_is_it_is_carried_over_or_a_remark(convert, name, value):
    sections, remarks = convert(TRL | {name: value}, "--processes", "8")
    assert sections["train"]["learning_rate"] == TRL["learning_rate"] or remarks
    if name == "gradient_accumulation_steps":
        assert "accumulation" not in sections["train"]
        assert any("ccumulation" in remark for remark in remarks)
    elif isinstance(name, str):
        assert any(remark.startswith((name.split("\n")[0], "train: ")) for remark in remarks)


def test_a_number_as_text_is_a_number(convert):
    sections, _ = convert(TRL | {"gradient_accumulation_steps": "4"}, "--processes", "8")
    assert sections["train"]["accumulation"] == 32


def test_full_fine_tuning_stays_full(convert):
    sections, _ = convert({"model_name_or_path": "org/model", "output_dir": "out"})
    assert sections["train"]["lora_r"] == 0


def test_a_value_that_is_refused_is_a_remark(convert):
    _, remarks = convert(TRL | {"loss_type": "xyzzy", "loss_weights": None})
    assert any(remark.startswith("train: loss: ") for remark in remarks)


def test_every_name_and_its_meaning_stand_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
    for name, ours in NAMES.items():
        option = f"`--{ours.option.replace('_', '-')}`" if ours.option else ""
        assert f"| `{name}` | {option} | {ours.meaning} |" in guide
        assert advice_on(f"--{name.replace('_', '-')}").endswith(ours.meaning)
