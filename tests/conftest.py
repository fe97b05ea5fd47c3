"""Real parts, made tiny: a checkpoint on disk, the project's own preferences, a silent console.

xdist's first process imports this file and runs no test. The workers wait for it, so what takes
seconds to import (torch, transformers, peft) is imported where it is used.
"""

import gc
import multiprocessing
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.manifest import Manifest
from reflogp.pipeline import cli
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.progress import Advance
from tests.browser import Page, browser, find_chromium
from tests.planted import faulty, ids_of, unpaired  # noqa: F401 - fixtures

settings.register_profile("reflogp", deadline=None)  # a loaded machine is no fault of the code
settings.load_profile("reflogp")


def pytest_configure() -> None:
    """Give the vLLM engines of each worker of xdist a core of their own."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        core = cores[int(worker.removeprefix("gw")) % len(cores)]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(core))


def pytest_collection_finish() -> None:
    """Keep what is imported out of each garbage collection: Trainer collects in every run."""
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Llama with a ChatML tokenizer."""
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture and tokenizer, other weights."""
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def few_preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 24 of the project's own preferences."""
    from tests.checkpoints import EXAMPLES

    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("data") / "few.jsonl"
    path.write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ray_alone() -> Iterator[None]:
    """Ray sends nothing, leaves no token in the home folder, and knows of no other's cluster.

    One token for all clusters of this process, as Ray reads it once.
    """
    # a path as short as the sockets in it need it
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture
def cache_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `datasets` keeps its files: a folder of the test's own."""
    from datasets import config

    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture(scope="module")
def forked_child() -> Iterator[None]:
    """The runs of a sweep are forked, which spares each the imports.

    tests/faults/test_signals.py has a sweep whose runs start as a user's do.
    """
    with pytest.MonkeyPatch.context() as patch:
        context = multiprocessing.get_context("fork")
        patch.setattr("reflogp.pipeline.child.get_context", lambda _: context)
        yield


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
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Advance]:
        yield lambda amount, note="": None


@pytest.fixture
def console() -> Silent:
    """A fresh silent console."""
    return Silent()


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Call `reflogp` with the words that follow it, in this process."""

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["reflogp", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def cache(
    checkpoint: Path, few_preferences: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """24 pairs, cut to 192 tokens, scored in float32."""
    from reflogp.pipeline.run import run_precompute

    folder = tmp_path_factory.mktemp("cache")
    config = PrecomputeConfig(
        reference=str(checkpoint),
        data=str(few_preferences),
        cache=folder,
        engine="transformers",
        max_length=192,
        truncate="response",
        shard_tokens=4000,
    )
    run_precompute(config, Silent())
    assert len(manifests.read(folder).shards) > 1
    return folder


@pytest.fixture(scope="session")
def manifest(cache: Path) -> Manifest:
    """Of the cache."""
    return manifests.read(cache)


@pytest.fixture(scope="session")
def tab() -> Iterator[Page]:
    """A tab of a real Chromium."""
    command = find_chromium()
    if command is None:
        pytest.skip("no Chromium found; install one (Debian: chromium), or name it in CHROMIUM")
    with browser(command) as page:
        yield page
