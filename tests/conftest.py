"""Real parts, made tiny: a checkpoint on disk, the project's own preferences, a silent console."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import EXAMPLES, make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Llama with a ChatML tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture and tokenizer, other weights."""
    return make_checkpoint(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def few_preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 24 of the project's own preferences."""
    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("data") / "few.jsonl"
    path.write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    return path


class Silent:
    """A Console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
        yield lambda amount: None


@pytest.fixture
def console() -> Silent:
    """A fresh silent console."""
    return Silent()
