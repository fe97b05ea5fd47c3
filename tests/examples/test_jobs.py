"""The job files are files of their kind, and every command in them is one that reflogp takes."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from pydantic import BaseModel
from torch.distributed.run import get_args_parser

from reflogp.pipeline.cli import app
from reflogp.pipeline.config import build
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows
from tests.checkpoints import EXAMPLES

JOBS = sorted((EXAMPLES / "jobs").iterdir())
SCRIPTS = [path for path in JOBS if path.suffix == ".sh"]
MODELS: dict[str, type[BaseModel]] = {"precompute": PrecomputeConfig, "train": TrainConfig}
# what the launcher's own environment would put there
_VALUES = {"$((JOB_COMPLETION_INDEX + 1))": "16", "--share slurm": "--share 16/16", ' "$@"': ""}


def texts(content: Any) -> Iterator[str]:
    """All text in a YAML document."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from texts(inner)


def commands(path: Path) -> list[list[str]]:
    """The words of each command in a job file that calls reflogp."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        lines = list(texts(yaml.safe_load(content)))
    else:
        lines = content.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        for inside, value in _VALUES.items():
            line = line.replace(inside, value)
        if "reflogp " in line and not line.lstrip().startswith("#"):
            found.append(shlex.split(line))
    return found


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_command_is_one_that_reflogp_takes(path: Path):
    (words,) = commands(path)
    name, *options = words[words.index("reflogp") + 1 :]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, options).params
    settings = {key: value for key, value in given.items() if key in MODELS[name].model_fields}
    build(MODELS[name], {}, settings)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path: Path):
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-n", path], check=True)
    assert path.stat().st_mode & 0o100


def test_launchers_take_the_words_before_reflogp():
    parsers: dict[str, argparse.ArgumentParser] = {
        "torchrun": get_args_parser(), "launch": launch_command_parser(),
    }  # fmt: skip
    seen = set()
    for path in SCRIPTS:
        (words,) = commands(path)
        for launcher in parsers.keys() & set(words):
            given = parsers[launcher].parse_args(words[words.index(launcher) + 1 :])
            assert given.training_script == "reflogp"
            assert given.no_python
            seen.add(launcher)
    assert seen == {"torchrun", "launch"}


def test_an_indexed_job_has_as_many_indices_as_shares():
    job = yaml.safe_load((EXAMPLES / "jobs" / "precompute-kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (of,) = re.findall(r"--share \S+ \+ 1\)\)/(\d+)", container["command"][-1])
    assert job["spec"]["completions"] == int(of)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}


@pytest.mark.slow
def test_the_pods_of_an_indexed_job_make_one_cache(
    cache: Path, checkpoint: Path, few_preferences: Path, tmp_path: Path
):
    job = yaml.safe_load((EXAMPLES / "jobs" / "precompute-kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    *shell, line = container["command"]
    for theirs, ours in {
        "/models/sft": checkpoint, "/data/preferences.jsonl": few_preferences,
        "s3://bucket/cache": tmp_path, "+ 1))/16": "+ 1))/2",
    }.items():  # fmt: skip
        assert theirs in line
        line = line.replace(theirs, str(ours))
    line += " --engine transformers --max-length 192 --truncate response --shard-tokens 4000"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for index in ("1", "0"):
        assert not (tmp_path / "manifest.json").exists()
        pod = os.environ | {"JOB_COMPLETION_INDEX": index, "PATH": path}
        subprocess.run([*shell, line], env=pod, check=True)
    assert rows(tmp_path) == rows(cache)


def test_a_ray_job_can_have_as_many_nodes_as_actors():
    path = EXAMPLES / "jobs" / "precompute-kuberay.yaml"
    (words,) = commands(path)
    (group,) = yaml.safe_load(path.read_text())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    least, most = map(int, words[words.index("--actors") + 1].split("-"))
    assert group["maxReplicas"] >= most >= least
    (container,) = group["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(words[words.index("--actor-gpus") + 1])
