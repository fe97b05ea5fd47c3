"""One small cache, made without a fault, that all others are compared with."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_integrity
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.caches import rows
from tests.conftest import Silent
from tests.faults import processes

THOROUGH = "REFLOGP_FAULTS" in os.environ
"""Set by `make faults`: every write and many random instants, not a few of them."""


def times(few: int, more: int, many: int) -> pytest.MarkDecorator:
    """How often a test does its fault: few times in `make test`, many times in `make faults`."""
    often = [many] if THOROUGH else [few, pytest.param(more, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("times", often)


Make = Callable[[Path], PrecomputeConfig]
Record = Callable[[str, int, str], None]
_FIGURES = pytest.StashKey[list[tuple[str, int, str]]]()


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> Record:
    """Keeps what was done how often, and where, for the table at the end."""
    figures = request.config.stash.setdefault(_FIGURES, [])
    return lambda what, number, where: figures.append((what, number, where))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With `make faults`: a table of what was done."""
    figures = config.stash.get(_FIGURES, [])
    if figures and THOROUGH:
        terminalreporter.section("faults")
        for what, number, where in figures:
            terminalreporter.write_line(f"{number:6,}  {what} ({where})")


@pytest.fixture(scope="session")
def configured(checkpoint, few_preferences) -> Make:
    """The same small job for any cache folder."""

    def make(cache: Path) -> PrecomputeConfig:
        return PrecomputeConfig(
            reference=str(checkpoint), data=str(few_preferences), cache=cache, max_length=192,
            engine="transformers", shard_tokens=3000, verify_sample=0,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def sound(configured, tmp_path_factory) -> Path:
    """The cache of a run that nothing happened to."""
    config = configured(tmp_path_factory.mktemp("sound"))
    processes.run(processes.precompute(config))
    manifest = manifests.read(config.cache)
    assert len(manifest.shards) > 2
    assert manifest.counts.quarantined
    return config.cache


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same bits as in a fresh process of tests/faults/processes.py."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names(cache: Path) -> set[str]:
    """Names of all that is in the folder."""
    return {path.name for path in cache.iterdir()}


def require_equal(cache: Path, sound: Path) -> None:
    """`cache` has the rows of `sound`, every bit of it is right, and nothing lies about in it."""
    found, expected = rows(cache), rows(sound)
    by_id = {row["row_id"]: row for row in found}
    wanted = {row["row_id"]: row for row in expected}
    assert wanted.keys() - by_id.keys() == set(), "rows were lost"
    assert len(found) == len(by_id), "rows are there twice"
    assert [row_id for row_id in by_id if by_id[row_id] != wanted.get(row_id)] == []
    assert found == expected
    assert run_integrity(cache, Silent()) == []
    assert names(cache) == names(sound)
    made, planned = manifests.read(cache), manifests.read(sound)
    assert made.counts == planned.counts
    # Parquet, too, depends on nothing but the rows
    assert made.shards == planned.shards
    assert made.quarantine == planned.quarantine
