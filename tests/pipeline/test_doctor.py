"""`reflogp doctor` finds that all is right, and finds a wrong number or a broken installation."""

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from reflogp.data_schemas import doctor_report
from reflogp.data_schemas.doctor_report import Gpu, Machine
from reflogp.pipeline.cli import app
from reflogp.pipeline.doctor import run as doctor
from reflogp.pipeline.doctor import stage_one, stage_two
from reflogp.pipeline.doctor.task import Found, Task, check
from reflogp.stages.doctor import machine
from reflogp.stages.doctor.truth import Step, furthest
from reflogp.stages.precompute.score.engines import choose
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from tests.end_to_end.test_commands import reflogp

QUICK = ["doctor", "--quick", "--engine", "transformers"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages in this process, where a fault can be planted."""
    monkeypatch.setattr(doctor, "call_in_child", lambda stage, task, grace_seconds: stage(task))


def results(found: Found, name: str = "") -> dict[str, str]:
    return {check.name: check.result for check in found.checks if name in check.name}


def run(*more: object, code: int) -> str:
    done = CliRunner().invoke(app, [*QUICK, *map(str, more)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.mark.usefixtures("here")
def test_one_architecture_is_right_and_the_report_names_nobody(tmp_path: Path):
    file = tmp_path / "report.json"
    run("--json", file, code=0)
    report = doctor_report.read(file)
    measured = [check for check in report.checks if check.figures]
    assert [(check.part, check.result) for check in measured] == [
        ("stage one", "ok"), ("stage two", "ok"), ("stage two", "ok"),
    ]  # fmt: skip
    # not zero: the stages compute in another way than what they are compared with
    assert all(0 < max(check.figures.values()) < 1e-3 for check in measured)
    assert {"torch", "transformers", "peft"} <= set(report.machine.versions)
    text = file.read_text()
    for name in (str(Path.home()), socket.gethostname(), str(tmp_path), sys.prefix):
        assert f"{name}/" not in text
    doctor._require_report_file(file)  # a report may be replaced


@pytest.mark.usefixtures("here")
def test_a_wrong_log_prob_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = TransformersScorer.score

    def wrong(self: TransformersScorer, requests: Any) -> list[np.ndarray]:
        found = right(self, requests)
        for logps in found:  # the check before the seal, which uses this engine, cannot find it
            logps[-1] -= 0.01
        return found

    monkeypatch.setattr(TransformersScorer, "score", wrong)
    task = Task(tmp_path, ("Llama 3",), "transformers", thorough=False)
    assert results(stage_one.stage_one(task)) == {"vllm": "skipped", "Llama 3, float32": "off"}


@pytest.mark.usefixtures("here")
def test_a_wrong_gradient_is_off_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch):
    right = PreferenceTrainer.compute_loss

    def wrong(*arguments: Any, **more: Any) -> Any:
        return right(*arguments, **more) * 0.98

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", wrong)
    lines = run(code=1).splitlines()
    off = [line for line in lines if line.startswith("off")]
    assert len(off) == 2
    assert all("stage two" in line and "grad_norm is off by 0.02" in line for line in off)


def test_a_vllm_that_cannot_be_imported_is_off_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choose, "_vllm", lambda: ("0.99.0", None))
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in [name for name in sys.modules if name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    found = stage_one.stage_one(Task(tmp_path, ("Llama 3",), "auto", thorough=False))
    assert results(found) == {"vllm": "off", "Llama 3, float32": "ok"}
    assert "0.99.0 is installed, but cannot be imported" in found.checks[0].why


def test_without_vllm_its_ways_are_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choose, "_vllm", lambda: ("", "vLLM is not installed"))
    monkeypatch.setattr(stage_one, "_timed", lambda *_: ("", {}, []))
    found = stage_one.stage_one(Task(tmp_path, ("Llama 3",), "auto", thorough=True))
    assert results(found, "vllm") == {"vllm": "skipped"}
    assert results(found, "prompt_logprobs") == {
        "Llama 3, float32, vLLM's prompt_logprobs": "skipped"
    }
    assert all(
        "vLLM is not installed" in check.why for check in found.checks if check.result == "skipped"
    )
    assert results(found, "bfloat16") == {"Llama 3, bfloat16": "ok"}


def test_without_a_cache_training_is_off(tmp_path: Path):
    task = Task(tmp_path, ("Llama 3",), "transformers", thorough=False)
    found = stage_two.stage_two(task)
    assert set(results(found).values()) == {"off"}
    assert all("stage one made no cache" in check.why for check in found.checks)


def test_what_was_found_is_in_the_file_before_the_next_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, found = tmp_path / "report.json", list[int]()

    def stage(*_: Any, **__: Any) -> Found:
        found.append(len(doctor_report.read(file).checks))
        far = {"loss": float("inf"), "margin": 0.1}
        return Found([check("stage one", "all of it", lambda: ("", far, ["too far"]))], [])

    monkeypatch.setattr(doctor, "call_in_child", stage)
    run("--json", file, code=1)
    assert 0 < found[0] == found[1] - 1
    assert doctor_report.read(file).checks[-1].figures == {"margin": 0.1}


def _dies(task: Task) -> Found:
    os._exit(9)


def test_a_stage_whose_process_dies_is_off(tmp_path: Path):
    task = Task(tmp_path, (), "auto", thorough=False)
    (lost,) = doctor._alone(_dies, task).checks
    assert lost.result == "off"
    assert "its process was killed (exit code 9)" in lost.why


@pytest.mark.parametrize("name", ["none/report.json", "notes.json"])
def test_a_file_that_cannot_be_the_report_is_refused_at_once(name: str, tmp_path: Path):
    (tmp_path / "notes.json").write_text("{}")
    done = CliRunner().invoke(app, [*QUICK, "--json", str(tmp_path / name)])
    assert "--json" in str(done.exception)
    assert (tmp_path / "notes.json").read_text() == "{}"


def with_driver(**more: Any) -> Machine:
    """A machine with an H100 and a driver for CUDA 12.8, which PyTorch does not see."""
    here = machine.survey()
    facts = {
        "gpus": [Gpu(name="NVIDIA H100")], "driver": "570.1", "driver_cuda": "12.8",
        "torch_cuda": "12.8", "torch_sees_gpus": False,
    }  # fmt: skip
    return here.model_copy(update=facts | more)


@pytest.mark.parametrize(
    ("facts", "result", "said"),
    [
        ({"torch_cuda": "13.0"}, "off", "for CUDA up to 12.8, but torch .* for CUDA 13.0, which"),
        ({"torch_cuda": None}, "off", "is a build without CUDA"),
        ({}, "off", "sees no GPU. Check CUDA_VISIBLE_DEVICES"),
        ({"gpus": [], "driver": None}, "skipped", "no NVIDIA driver"),
        (
            {
                "torch_sees_gpus": True,
                "gpus": [Gpu(name="NVIDIA H100", memory_bytes=80 * 10**9, capability="9.0")] * 2,
            },
            "ok",
            "2 x NVIDIA H100, 80 GB, compute capability 9.0; driver 570.1",
        ),
    ],
)
def test_gpus_and_driver_and_torch_fit_together_or_not(
    facts: dict[str, Any], result: str, said: str
):
    (check,) = (found for found in machine.checks(with_driver(**facts)) if found.name == "GPU")
    assert check.result == result
    assert re.search(said, check.why), check.why


def test_a_library_that_is_too_old_is_off(monkeypatch: pytest.MonkeyPatch):
    lines = ["torch>=99", "numpy>=1", "none-such>=1", 'trl==0.1; extra == "dev"']
    monkeypatch.setattr(machine, "_requirements", lambda: lines)
    off = [check for check in machine.checks(machine.survey()) if check.result == "off"]
    assert [check.name for check in off] == ["torch"]
    assert "reflogp needs >=99" in off[0].why


def test_paths_and_names_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    monkeypatch.setattr(doctor, "getuser", lambda: "ada")
    said = "/home/ada/x/site-packages/vllm/envs.py: ada at node-17: 3/4 of 1e-3, adapter"
    assert doctor.anonymous(said) == "envs.py: ... at ...: 3/4 of 1e-3, adapter"


def test_a_curve_with_a_missing_step_or_nan_is_infinitely_far():
    true = [Step(0.7, 0.0, 2.0), Step(0.5, 0.4, 1.0)]
    near = [Step(0.7, 0.0, 2.0), Step(0.5, 0.3, 1.0)]
    assert furthest(near, true) == pytest.approx({"loss": 0, "margin": 0.25, "grad_norm": 0})
    for far in (near[:1], [near[0], Step(0.5, float("nan"), 1.0)]):
        assert set(furthest(far, true).values()) == {float("inf")}


@pytest.mark.slow
@pytest.mark.vllm
def test_the_whole_command_finds_nothing_off_here(tmp_path: Path):
    file = tmp_path / "report.json"
    reflogp("doctor", "--json", file)
    report = doctor_report.read(file)
    assert {check.result for check in report.checks} <= {"ok", "skipped"}
    scored = [check for check in report.checks if check.part == "stage one" and check.figures]
    scored_by_vllm = [check.name for check in scored if check.why.startswith("vllm")]
    if not report.machine.torch_sees_gpus:  # there all of it
        assert scored_by_vllm == ["Llama 3, float32", "Llama 3, float32, vLLM's prompt_logprobs"]
    assert [timing.part for timing in report.timings] == ["stage one", "stage two"]
