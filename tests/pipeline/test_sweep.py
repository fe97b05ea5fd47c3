"""Many runs against one cache: real ones, each in a process of its own."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from typer.testing import CliRunner

from data_schemas import run_record
from data_schemas.errors import InputError
from data_schemas.sweep_record import FILE_NAME, SweepRecord
from pipeline.cli import app
from pipeline.sweep import Axes, _problem, axes, folder_name, run_sweep
from pipeline.sweep_table import header, rows


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
        (["output=a,b"], "--set output: a sweep has one cache"),
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
def swept(base):
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


def test_a_process_that_is_killed_is_a_run_that_failed(console):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        killed, broken = processes.submit(os._exit, 9), processes.submit(int, "x")
        assert "memory" in str(_problem(killed.exception(), console))
        assert broken.exception() is not None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        problem = _problem(processes.submit(int, "x").exception(), console)
        assert str(problem).startswith("ValueError: invalid literal")
    assert "Traceback" in console.said[-1]


def test_a_sweep_is_not_for_torchrun(base, console, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        run_sweep(base, {}, {"seed": [1]}, console)


def test_the_command_prints_the_table_and_fails_if_a_run_failed(tmp_path):
    options = ["--cache", "nowhere", "--output", str(tmp_path), "--weighting", "wpo"]
    done = CliRunner().invoke(app, ["sweep", *options, "--set", "loss=aot", "--set", "seed=1,2"])
    assert done.exit_code == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["aot", "1", "failed"] in lines
    assert ["aot", "2", "failed"] in lines
    assert (tmp_path / "sweep.md").is_file()
