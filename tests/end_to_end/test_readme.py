"""The commands that README.md shows, run in its order as they stand there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from reflogp.pipeline.cli import app

README = Path(__file__).parents[2] / "README.md"
# What makes a tiny model on a CPU do: no vLLM, few steps, one combination. Sealing is `merge`'s.
MORE = {
    "doctor": ["--quick", "--engine", "transformers"],
    "plan": ["--max-length", "192"],
    "precompute": ["--max-length", "192", "--engine", "transformers", "--share", "1/1"],
    "train": ["--max-steps", "1"],
    "sweep": ["--set", "loss=ipo", "--set", "beta=0.1", "--max-steps", "1"],
}


def commands() -> list[list[str]]:
    """Each line of README.md that calls reflogp, without its remark, as words."""
    lines = re.findall(r"^reflogp +(.+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def folder(checkpoint, few_preferences, tmp_path_factory) -> Path:
    """A folder with the files that the commands name."""
    path = tmp_path_factory.mktemp("readme")
    (path / "preferences.jsonl").write_bytes(few_preferences.read_bytes())
    sections = {
        "precompute": {
            "reference": str(checkpoint), "data": "preferences.jsonl", "cache": "cache",
            "engine": "transformers", "max_length": 192,
        },
        "train": {"cache": "cache", "output": "model", "max_steps": 1},
    }  # fmt: skip
    (path / "run.yaml").write_text(yaml.safe_dump(sections))
    (path / "dpo.yaml").write_text("model_name_or_path: org/model\nlearning_rate: 5.0e-6\n")
    return path


def test_every_command_of_the_readme_runs(folder, checkpoint, forked_child, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(commands()) > 10
    for words in commands():
        name, *arguments = words
        if name == "sweep":  # its combinations take their own tests' time
            arguments = arguments[:4]
        if "--list-losses" not in arguments:
            arguments += MORE.get(name, [])
        arguments = [str(checkpoint) if word == "MODEL" else word for word in arguments]
        result = CliRunner().invoke(app, [name, *arguments])
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert (folder / "model" / "adapter_model.safetensors").is_file()
    assert (folder / "less" / "manifest.json").is_file()
    assert list((folder / "pairs").rglob("*.parquet"))
    assert list(folder.rglob("*.html"))


# Options of the launchers that the guides show beside ours.
OTHERS = {
    "--standalone", "--nproc-per-node", "--no-python", "--multi_gpu", "--num_processes",
    "--no_python", "--signal", "--requeue",
}  # fmt: skip


GUIDES = sorted(set(README.parent.glob("docs/*.md")) - {README.parent / "docs" / "log.md"})


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_option_that_a_guide_names_exists(guide):
    there_are: Any = get_command(app)
    options = {
        option
        for command in there_are.commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", guide.read_text(encoding="utf-8")))
    assert named - options - OTHERS - {"--help"} == set()


def test_every_command_is_in_the_readme():
    there_are: Any = get_command(app)
    assert {words[0] for words in commands()} == set(there_are.commands)
