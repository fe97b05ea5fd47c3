"""One YAML file and the command line make one validated model; a mistake is named and put right."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.cli import app, main
from reflogp.pipeline.config import SECTIONS, build, load_file, of_training, overridden
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.losses.registry import EVERY_LOSS

FIRST = {"reference": "model", "data": "pairs.jsonl", "cache": "cache"}
SECOND = {"cache": "cache", "output": "out"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def yaml_file(tmp_path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def precompute(**given: Any) -> PrecomputeConfig:
    return build(PrecomputeConfig, FIRST, given)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("precompute: {max_lenght: 5}", "precompute: there is no key 'max_lenght'; did you mean "
         "'max_length'?"),
        ("train:\n  learning-rate: 1", "train: there is no key 'learning-rate'; did you mean "
         "'learning_rate'?"),
        ("train: {xyzzy: 1}", "train: there is no key 'xyzzy'; known: cache, output, overwrite"),
        ("train: {max_length: 5}", "no key 'max_length'; it belongs under 'precompute'."),
        ("precompute: {beta: 5}", "no key 'beta'; it belongs under 'train'."),
        ("precomput: {}", "there is no section 'precomput'; did you mean 'precompute'?"),
        ("precompute: {shard: 3/16}", "there is no key 'shard'; did you mean 'share'?"),
        ("trian: {}", "there is no section 'trian'; did you mean 'train'?"),
        ("reference: model", "no section 'reference'; it belongs under 'precompute'."),
        ("cache: folder", "no section 'cache'; it belongs under 'precompute' or 'train'."),
        ("7: {}", "there is no section 7; known: precompute, train, sweep."),
        ("train: {7: 1}", "there is no key 7; known: cache, "),
        ("- train", "expected keys with values, got list."),
        ("train: [1]", "train: expected keys with values, got list."),
        ("train: beta", "train: expected keys with values, got str."),
        ("train: {beta: 1", "not valid YAML: "),
        ("train: {\t}: 1", "not valid YAML: "),
        ("!!python/object:os.system {}", "not valid YAML: "),
        (b"train: {policy: caf\xe9}", "not valid YAML: "),
        ("train: {output: 2020-13-45}", "not valid YAML: month must be in 1..12"),
        ("train: {seed: " + "9" * 5_000 + "}", "not valid YAML: Exceeds the limit"),
        ("train: {gradient_checkpointing: !!bool perhaps}", "not valid YAML: 'perhaps'"),
        ("train: {cache: !!timestamp later}", "not valid YAML: "),
    ],
)  # fmt: skip
def test_a_yaml_file_with_a_mistake_is_refused_with_its_place_and_the_remedy(
    content, expected, yaml_file
):
    path = yaml_file(content)
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(InputError, match=rf"--config {re.escape(str(path))}: cannot be read"):
            load_file(path)


@pytest.mark.parametrize("content", ["", "# nothing yet", "train:\nprecompute:\n", "train: {}"])
def test_what_a_yaml_file_leaves_out_is_left_to_the_defaults(content, yaml_file):
    empty: dict[str, dict[str, object]] = {"precompute": {}, "train": {}, "sweep": {}}
    assert load_file(yaml_file(content)) == empty == load_file(None)


@pytest.mark.parametrize(
    ("model", "values", "expected"),
    [
        (PrecomputeConfig, {"max_length": "many"}, "--max-length (in YAML: max_length): input "
         "should be a valid integer, unable to parse string as an integer, got 'many'"),
        (PrecomputeConfig, {"max_length": 1}, "--max-length (in YAML: max_length): input should be "
         "greater than or equal to 2, got 1"),
        (PrecomputeConfig, {"engine": "vlm"}, "--engine (in YAML: engine): input should be 'auto', "
         "'vllm' or 'transformers', got 'vlm'"),
        (PrecomputeConfig, {"columns": "prompt"}, "--columns (in YAML: columns): 'prompt' is not "
         "of the form name=value,name=value"),
        (PrecomputeConfig, {"columns": {"prompt": 3}}, "--columns (in YAML: columns): input should "
         "be a valid string, got 3"),
        (PrecomputeConfig, {"data": None}, "--data (in YAML: data): input should be a valid "),
        (PrecomputeConfig, {"min_confidence": "high"}, "--min-confidence"),
        (TrainConfig, {"loss": "simpoo"}, "--loss (in YAML: loss): there is no loss 'simpoo' (did "
         "you mean 'simpo'?), got 'simpoo'. See"),
        (TrainConfig, {"loss": "xyzzy"}, "'xyzzy' (see reflogp train --list-losses)"),
        (TrainConfig, {"loss": "dpo=1,sft"}, "expected a name, or name=weight,name=weight, got"),
        (TrainConfig, {"loss": "dpo=1,sft=much"}, "expected a name, or name=weight,name=weight"),
        (TrainConfig, {"loss": {"dpo": -1}}, "--loss (in YAML: loss): weights must be positive"),
        (TrainConfig, {"loss": "cdpo", "loss_args": "label_smothing=0.1"}, "--loss-args (in YAML: "
         "loss_args): the loss has no argument 'label_smothing' (did you mean 'label_smoothing'?)"),
        (TrainConfig, {"loss": "rdpo=1,cdpo=1", "loss_args": {"xyzzy": 1}}, "no argument 'xyzzy' "
         "(it has: alpha, label_smoothing)"),
        (TrainConfig, {"loss_args": "gamma=1"}, "no argument 'gamma' (it has none)"),
        (TrainConfig, {"loss_args": "beta=1"}, "beta has an option of its own, --beta"),
        (TrainConfig, {"loss": "cdpo", "loss_args": "label_smoothing=0.5"}, "label_smoothing: "
         "input should be less than 0.5"),
        (TrainConfig, {"loss": "ipo", "loss_args": "per_token=maybe"}, "per_token: input should "
         "be a valid boolean"),
        (TrainConfig, {"loss": "dpo=1,aot=1", "weighting": "wpo"}, "--weighting (in YAML: "
         "weighting): the loss aot sorts the batch, so pairs cannot have weights, got 'wpo'"),
        (TrainConfig, {"beta": 0}, "--beta (in YAML: beta): input should be greater than 0, got 0"),
        (TrainConfig, {"lora_dropout": 1}, "--lora-dropout"),
        (TrainConfig, {"gradient_checkpointing": "maybe"}, "--gradient-checkpointing"),
        (TrainConfig, {"beta": float("inf")}, "--beta (in YAML: beta): input should be a finite"),
        (TrainConfig, {"seed": 2**32}, "--seed (in YAML: seed): input should be less than"),
        (TrainConfig, {"output": "a\0b"}, r"--output (in YAML: output): 'a\x00b': a path must be "
         "UTF-8 without a null character"),
        (PrecomputeConfig, {"min_confidence": float("nan")}, "--min-confidence"),
        # a file name in Latin-1, as Python gives it: the manifest could not say what was scored
        (PrecomputeConfig, {"data": "caf\udce9.jsonl"}, "--data (in YAML: data): "
         r"""'"caf\udce9.jsonl"' is not UTF-8. Rename it."""),
        (PrecomputeConfig, {"engine_args": {"a": b"b"}}, "--engine-args (in YAML: engine_args): "
         "input was not a valid JSON value, got b'b'"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_names_its_option(model, values, expected):
    complete = FIRST if model is PrecomputeConfig else SECOND
    with pytest.raises(InputError, match=re.escape(expected)):
        build(model, complete | values, {})


def test_all_that_is_missing_or_wrong_is_said_at_once():
    with pytest.raises(InputError) as caught:
        build(PrecomputeConfig, {"max_length": 0}, {"data": "pairs.jsonl"})
    message = str(caught.value)
    for expected in ("--reference (in YAML: reference) is required", "--cache", "--max-length"):
        assert expected in message
    assert "--data" not in message
    assert message.endswith(" See --help.")


def test_the_command_line_wins_over_yaml_and_yaml_over_the_default(yaml_file):
    section = load_file(yaml_file("precompute: {max_length: 512, truncate: prompt}"))["precompute"]
    config = build(PrecomputeConfig, section | FIRST, {"max_length": 256, "truncate": None})
    assert (config.max_length, config.truncate, config.split) == (256, "prompt", "train")


def test_shard_of_several_names_share():
    result = CliRunner().invoke(app, ["precompute", "--shard", "3/16"])
    assert isinstance(result.exception, InputError)
    assert "now called --share 3/16" in str(result.exception)
    assert "--shard " not in CliRunner().invoke(app, ["precompute", "--help"]).stdout


def test_numbers_in_yaml_may_have_an_exponent_without_a_point(yaml_file):
    section = load_file(yaml_file("train: {learning_rate: 5e-5, max_steps: -1}"))["train"]
    assert build(TrainConfig, section | SECOND, {}).learning_rate == 5e-5


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "question", "chosen": "1", "rejected": "true"},
        "prompt=question,chosen=1,rejected=true",
        " prompt = question , chosen=1, rejected=true,",
    ],
)
def test_columns_are_a_mapping_or_assignments(columns):
    expected = {"prompt": "question", "chosen": "1", "rejected": "true"}
    assert precompute(columns=columns).columns == expected


@pytest.mark.parametrize("columns", ["prompt", "prompt=", "=question", "prompt=a,b", " = "])
def test_columns_of_another_form_are_refused(columns):
    with pytest.raises(InputError, match=r"--columns .* is not of the form name=value"):
        precompute(columns=columns)


def test_engine_arguments_are_what_they_look_like():
    given = "gpu_memory_utilization=0.5,max_num_seqs=8,enforce_eager=True,quantization=fp8,x=a=b"
    expected = {
        "gpu_memory_utilization": 0.5,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "quantization": "fp8",
        "x": "a=b",
    }
    assert precompute(engine_args=given).engine_args == expected
    assert precompute(engine_args=expected).engine_args == expected


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_an_option_with_its_description_and_default(section):
    shown = CliRunner().invoke(app, [section, "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    assert shown.exit_code == 0
    text = " ".join(ANSI.sub("", shown.output).replace("--[no-]", "--").split())
    for name, field in SECTIONS[section].model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert field.description is not None
        assert field.description in text
        if field.is_required():
            assert f"{field.description} (required, here or in --config)" in text
    assert "--config" in text


@pytest.mark.parametrize("command", ["precompute", "train", "sweep", "run", "inspect", "doctor"])
def test_the_help_lists_every_command(command):
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert command in shown.output


@pytest.mark.parametrize("loss", ["dpo=1,sft=0.2", {"dpo": 1, "sft": 0.2}])
def test_losses_are_a_mapping_or_assignments(loss):
    assert build(TrainConfig, SECOND, {"loss": loss}).losses == {"dpo": 1.0, "sft": 0.2}
    assert build(TrainConfig, SECOND, {}).losses == {"dpo": 1.0}


def test_beta_is_that_of_the_first_losss_paper_unless_it_is_given():
    for loss, beta in (("dpo", 0.1), ("simpo", 2.0), ("sft=1,dpo_norm=1", 5.0), ("sft", 0.1)):
        assert build(TrainConfig, SECOND, {"loss": loss}).beta == beta
        assert build(TrainConfig, SECOND, {"loss": loss, "beta": 0.7}).beta == 0.7


def test_the_arguments_of_a_loss_get_the_types_of_its_signature():
    given = {"loss": "ipo=1,cdpo=1", "loss_args": "per_token=false,label_smoothing=0"}
    expected = {"per_token": False, "label_smoothing": 0.0}
    assert build(TrainConfig, SECOND, given).loss_args == expected


def test_the_table_of_losses_fits_80_columns_and_names_each():
    terminal = {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "NO_COLOR": "1", "TERM": "dumb"}
    shown = CliRunner().invoke(app, ["train", "--list-losses"], env=terminal)
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    words = shown.output.split()
    for name, loss in EVERY_LOSS.items():
        assert name in words
        assert loss.paper.split()[0] in words
    assert "label_smoothing=0.001" in words


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full", "loop", "folder", "", "x" * 5000])
def test_a_place_that_holds_nothing_to_read_is_refused_in_a_line(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    for given in (
        ["train", "--config", place], ["report", place], ["inspect", place], ["verify", place],
        ["train", "--cache", place, "--output", "run"], ["export", place, "--output", "export"],
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["reflogp", *given])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err.splitlines()
        assert end.value.code in {1, 2}, given
        assert said[-1].startswith("error: "), given
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "folder"}


def test_training_finds_the_cache_of_a_file_for_both_stages(yaml_file):
    sections = load_file(yaml_file("precompute: {cache: made}\ntrain: {output: model}"))
    assert build(TrainConfig, of_training(sections), {}).cache.name == "made"
    assert build(TrainConfig, of_training(sections), {"cache": "other"}).cache.name == "other"
    sections["train"]["cache"] = "own"
    assert build(TrainConfig, of_training(sections), {}).cache.name == "own"


def test_settings_override_a_file(yaml_file):
    file = load_file(yaml_file("precompute: {max_length: 512}\ntrain: {beta: 0.5, seed: 3}"))
    sections = overridden(file, ["train.beta=0.2", " precompute.max-length = 64"])
    train = build(TrainConfig, SECOND | sections["train"], {})
    assert (train.beta, train.seed) == (0.2, 3)
    assert build(PrecomputeConfig, FIRST | sections["precompute"], {}).max_length == 64
    assert file["train"]["beta"] == 0.5


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("beta=0.2", "give precompute.NAME=VALUE or train.NAME=VALUE"),
        ("train.beta", "give precompute.NAME=VALUE or train.NAME=VALUE"),
        ("sweep.beta=1", "give precompute.NAME=VALUE or train.NAME=VALUE"),
        ("train.betta=1", "did you mean 'beta'?"),
        ("train.max_length=1", "it belongs under 'precompute'"),
    ],
)
def test_settings_that_fit_nothing_are_refused(setting, expected):
    with pytest.raises(InputError) as caught:
        overridden(load_file(None), [setting])
    assert expected in str(caught.value)
