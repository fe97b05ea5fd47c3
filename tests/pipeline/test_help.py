"""`--help`: 80 columns, no name cut, every option in one group."""

import re

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from reflogp.pipeline.cli import app
from reflogp.pipeline.config import SECTIONS
from reflogp.pipeline.help import GROUPS, MOST_USED
from reflogp.stages.estimate.config import PlanConfig

COMMANDS = ("precompute", "plan", "merge", "train", "sweep", "run", "inspect", "verify",
            "diagnose", "filter", "export", "report")  # fmt: skip


def shown(*words, columns="80"):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": columns, "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_80_columns_and_cuts_no_name(command):
    text = shown(*command)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_every_command_has_a_whole_line_in_the_list():
    text = shown()
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w.*$", text, re.M)
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", ["precompute", "plan", "train", "sweep"])
def test_the_most_used_options_come_first(command):
    titles = [line.rstrip(":") for line in shown(command).splitlines() if re.match(r"\w.*:$", line)]
    assert titles[0] == MOST_USED
    assert titles == [group for group in GROUPS if group in titles]


def test_every_option_stands_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    models: list[type[BaseModel]] = [*SECTIONS.values(), PlanConfig]
    fields = {name for model in models for name in model.model_fields}
    extra = {"config", "dry_run", "list_losses", "json", "varied", "help"}
    assert set(names) == fields | extra


def test_an_example_in_brackets_is_not_taken_for_markup():
    assert '[dpo, "dpo=1,sft=0.2"]' in " ".join(shown("sweep").split())


def test_without_a_command_the_help_is_printed():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "Commands:" in result.output


def test_version():
    assert re.fullmatch(r"reflogp \d+\.\d+\S*\n", CliRunner().invoke(app, ["--version"]).output)
