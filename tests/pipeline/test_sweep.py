"""Many runs against one cache: real ones, each in a process of its own."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import run_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import Mark, read_mark, write_mark
from reflogp.data_schemas.sweep_record import FILE_NAME, SweepRecord
from reflogp.pipeline import sweep
from reflogp.pipeline.child import ChildFailedError, ChildKilledError, call_in_child
from reflogp.pipeline.cli import app
from reflogp.pipeline.sweep import Axes, axes, folder_name, header, rows, run_sweep


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["beta=0.05,0.1"], {"beta": ["0.05", "0.1"]}),
        (["seed=1", "lora-r=4, 8"], {"seed": ["1"], "lora_r": ["4", "8"]}),
        (['loss=[dpo, "dpo=1,sft=0.2"]'], {"loss": ["dpo", "dpo=1,sft=0.2"]}),
    ],
)  # fmt: skip
def test_settings_vary_as_given(given, expected):
    assert axes({}, given) == expected


def test_the_command_line_wins_over_the_file():
    section = {"beta": [0.1, 0.2], "loss": {"dpo": 1, "sft": 0.2}}
    assert axes(section, ["beta=0.3"]) == {"beta": ["0.3"], "loss": [{"dpo": 1, "sft": 0.2}]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "nothing to vary"),
        (["bet=1"], "did you mean 'beta'"),
        (["output=a,b"], "--set output: it cannot vary: a sweep has one cache"),
        (["beta="], "--set beta: there are no values"),
        (["beta"], "--set beta: there are no values"),
        (["loss=[dpo"], "not a valid list"),
    ],
)
def test_what_cannot_vary_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        axes({}, given)


def test_folders_have_plain_names_that_differ():
    assert folder_name({"loss": "dpo", "beta": 0.1}) == "loss=dpo,beta=0.1"
    odd = [folder_name({"policy": policy}) for policy in ("a/b", "a?b", "../a", "x" * 300)]
    assert len({*odd}) == 4
    assert all("/" not in name and len(name) < 120 for name in odd)


@pytest.fixture(scope="module")
def base(cache, tmp_path_factory):
    return {
        "cache": str(cache), "output": str(tmp_path_factory.mktemp("sweep")), "weighting": "wpo",
        "batch_size": 2, "accumulation": 1, "max_steps": 3, "eval_fraction": 0.2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def swept(base, forked_child):
    from tests.conftest import Silent

    console = Silent()
    varied: Axes = {"loss": ["dpo", "aot"], "lora_targets": ["q_proj", "nothing"]}
    return run_sweep(base, {}, varied, console), console


def test_a_run_that_fails_is_told_of_and_the_others_go_on(swept):
    record, console = swept
    done, failed, *invalid = record.runs
    assert (done.status, done.error) == ("done", None)
    assert done.folder == "loss=dpo,lora_targets=q_proj"
    assert failed.status == "failed"
    assert "--lora-targets" in failed.error
    for run in invalid:  # found before anything is loaded
        assert run.status == "failed"
        assert "sorts the batch" in run.error
    assert len(console.warned) == 3


def test_each_run_is_a_whole_one_in_its_folder_and_in_the_record(swept, base, tmp_path):
    record, _ = swept
    output = type(tmp_path)(base["output"])
    folder = output / record.runs[0].folder
    assert (folder / "adapter_model.safetensors").is_file()
    assert run_record.read(folder) == record.runs[0].run
    assert SweepRecord.model_validate_json((output / FILE_NAME).read_text()) == record


def test_the_table_has_the_held_out_figures_of_each_run(swept, base, tmp_path):
    record, _ = swept
    first, second, *_ = rows(record)
    assert header(record)[:3] == ("loss", "lora_targets", "loss")
    evaluation = record.runs[0].run.evaluation
    assert first[2:5] == (
        f"{evaluation.loss:.4f}", f"{evaluation.margin:+.4f}", f"{evaluation.accuracy:.3f}"
    )  # fmt: skip
    assert first[5] == f"{evaluation.margin_per_token:+.5f}"
    assert second[2] == "failed"
    text = (type(tmp_path)(base["output"]) / "sweep.md").read_text()
    assert "| " + " | ".join(first) + " |" in text
    assert "## Failed" in text


def test_a_finished_run_does_not_run_again(swept, base, console):
    again = run_sweep(base, {}, {"loss": ["dpo"], "lora_targets": ["q_proj"]}, console)
    assert again.runs == swept[0].runs[:1]


def test_a_process_that_is_killed_is_a_run_that_failed():
    with pytest.raises(ChildKilledError, match="exit code 9"):
        call_in_child(os._exit, 9, 0)
    with pytest.raises(ChildFailedError, match=r"Traceback(.|\n)*ValueError: invalid literal"):
        call_in_child(int, "x", 0)
    with pytest.raises(FileNotFoundError):
        call_in_child(os.listdir, "/nowhere", 0)
    assert call_in_child(abs, -2, 0) == 2


def test_a_sweep_is_not_for_torchrun(base, console, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        run_sweep(base, {}, {"seed": [1]}, console)


def test_the_command_prints_the_table_and_fails_if_a_run_failed(swept, base):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in base.items()]
    varied = ["--set", "loss=dpo,aot", "--set", "lora-targets=q_proj"]
    done = CliRunner().invoke(app, ["sweep", *options, *varied])
    assert done.exit_code == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["aot", "q_proj", "failed"] in lines
    assert (Path(base["output"]) / "sweep.md").is_file()


def test_each_combination_is_judged_as_a_whole(cache, tmp_path):
    """The common part alone would be refused: plain DPO has no label smoothing."""
    common = {"cache": cache, "output": tmp_path, "loss_args": {"label_smoothing": 0.2}}
    configs = [
        sweep._checked(common, {"loss": loss}, manifests.read(cache))
        for loss in ("cdpo", "robust", "dpo")
    ]
    assert [config and config.loss for config, _ in configs] == ["cdpo", "robust", None]
    assert "label_smoothing" in str(configs[2][1])


def test_an_option_that_no_combination_can_use_is_an_error(cache, tmp_path, console):
    common = {"cache": cache, "output": tmp_path, "loss_args": {"label_smoothing": 0.2}}
    with pytest.raises(InputError, match=r"no combination can be trained: .*label_smoothing"):
        run_sweep(common, {}, {"loss": ["dpo", "ipo"]}, console)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sweep.json", "sweep.md", "notes.txt"])
def test_a_folder_with_somebody_elses_files_is_refused(cache, tmp_path, console, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="reflogp did not write"):
        run_sweep({"cache": cache, "output": tmp_path}, {}, {"seed": [1]}, console)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_sweep_never_replaces_a_cache(cache, tmp_path, console):
    write_mark(tmp_path, Mark(kind="cache"))
    for overwrite in (False, True):
        given = {"cache": cache, "output": tmp_path, "overwrite": overwrite}
        with pytest.raises(InputError, match="holds a cache"):
            run_sweep(given, {}, {"seed": [1]}, console)


def test_a_sweep_replaces_only_its_own_files(swept, base, tmp_path, console):
    output = Path(shutil.copytree(base["output"], tmp_path / "copy"))
    again = base | {"output": str(output)}
    (output / "notes.txt").write_text("mine")
    (output / "sweep.md").unlink()
    (output / "reflogp.json").unlink()
    # an earlier release left no mark, and its table is known by its title
    (output / "sweep.md").write_text("mine")
    with pytest.raises(InputError, match=r"did not write sweep\.md"):
        run_sweep(again, {}, {"loss": ["dpo"], "lora_targets": ["q_proj"]}, console)
    (output / "sweep.md").unlink()
    run_sweep(again, {}, {"loss": ["dpo"], "lora_targets": ["q_proj"]}, console)
    assert (output / "notes.txt").read_text() == "mine"
    assert (output / "sweep.md").read_text().startswith("# A sweep over loss")
    (output / "old.md").write_text("an old chart")
    write_mark(output, Mark(kind="charts", files=["old.md", "sweep.md"]))
    (output / "sweep.json").unlink()
    with pytest.raises(InputError, match="--overwrite"):
        run_sweep(again, {}, {"loss": ["dpo"], "lora_targets": ["q_proj"]}, console)
    asked = again | {"overwrite": True}
    run_sweep(asked, {}, {"loss": ["dpo"], "lora_targets": ["q_proj"]}, console)
    assert not (output / "old.md").exists()
    assert (output / "notes.txt").read_text() == "mine"
    mark = read_mark(output)
    assert mark is not None
    assert (mark.kind, mark.files) == ("sweep", ["sweep.json", "sweep.md"])
