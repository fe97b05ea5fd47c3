"""The commands that read a cache, each in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline import cli
from reflogp.stages.interop.cached_reference import CachedReference

Command = Callable[[Path], tuple[int, str]]


@pytest.fixture
def reflogp(monkeypatch, capsys):
    """Run the command; its exit code, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reflogp", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        said = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in said
        return code, said

    return run


@pytest.fixture
def commands(reflogp, cache, checkpoint, tmp_path) -> dict[str, Command]:
    """Every command that reads the rows of a cache, by name; each takes the cache's folder."""
    out = tmp_path / "out"
    train = ("train", "--policy", checkpoint, "--output", out, "--lora-r", 0)

    def adapter(folder: Path) -> tuple[int, str]:
        try:
            CachedReference([folder])
        except InputError as error:
            return error.exit_code, str(error)
        return 0, ""

    return {
        "train": lambda folder: reflogp(*train, "--cache", folder),
        "train --eval-cache": lambda folder: reflogp(
            *train, "--cache", cache, "--eval-cache", folder
        ),
        "verify": lambda folder: reflogp("verify", folder),
        "diagnose": lambda folder: reflogp("diagnose", folder),
        "filter": lambda folder: reflogp(
            "filter", folder, "--output", tmp_path / "filtered", "--drop-truncated"
        ),
        "filter --dry-run": lambda folder: reflogp(
            "filter", folder, "--dry-run", "--drop-duplicates"
        ),
        "export": lambda folder: reflogp("export", folder, "--output", out),
        "TRL": adapter,
    }
