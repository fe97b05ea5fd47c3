"""Killed with SIGKILL at any write, a command leaves what is foreign, and one whole cache."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_integrity, run_precompute
from reflogp.stages.cache.folder import short
from reflogp.stages.filter.config import FilterRules
from tests.caches import file_names
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import THOROUGH, Make, Record, names
from tests.faults.processes import Command
from tests.foreign import plant, remembered

KILLS = None if THOROUGH else 3


def kill_everywhere(
    standing: Path, command: Callable[[Path], Command], tmp_path: Path, source: random.Random
) -> int:
    """Kill a command that replaces the cache in a copy of `standing`, at some of its writes."""
    digests = [short(manifests.read(standing).inputs)]
    processes.run(command(trial := shutil.copytree(standing, tmp_path / "trial")))
    digests.append(short(manifests.read(trial).inputs))
    planted = plant(standing, digests)
    foreign = remembered(standing, planted)
    counted = shutil.copytree(standing, tmp_path / "counted", symlinks=True)
    found = processes.writes(command(counted), counted)
    moments = [(one.number, moment) for one in found for moment in ("before", "after")]
    if KILLS:  # most of what can go wrong is at the end
        moments = source.sample(moments[:-30], 1) + source.sample(moments[-30:], KILLS - 1)
    for number, moment in moments:
        cache = shutil.copytree(standing, tmp_path / f"{moment}-{number}", symlinks=True)
        assert processes.kill_at(command(cache), cache, number, moment), (number, moment)
        assert remembered(cache, planted) == foreign, (number, moment)
        assert run_integrity(cache, Silent()) == [], (number, moment)
        processes.run(command(cache))
        assert remembered(cache, planted) == foreign, (number, moment)
        assert run_integrity(cache, Silent()) == []
        own = names(cache) - {path.parts[0] for path in planted}
        assert own == set(file_names(manifests.read(cache))), (number, moment)
    return len(moments)


def test_precompute_over_another_cache(configured: Make, tmp_path: Path, record_fault: Record):
    standing = tmp_path / "standing"
    earlier = configured(standing).model_copy(update={"max_length": 150})
    processes.run(processes.precompute(earlier))
    kills = kill_everywhere(
        standing, lambda cache: processes.precompute(configured(cache)), tmp_path, random.Random(11)
    )
    record_fault("precompute killed among foreign files", kills, "writes")


def test_filter_over_another_filtered_cache(sound: Path, tmp_path: Path, record_fault: Record):
    standing, rules = tmp_path / "standing", FilterRules(max_length_ratio=3)
    processes.run(processes.filtered(sound, standing, FilterRules(drop_truncated=True)))
    kills = kill_everywhere(
        standing, lambda out: processes.filtered(sound, out, rules), tmp_path, random.Random(12)
    )
    record_fault("filter killed among foreign files", kills, "writes")


@pytest.mark.parametrize("free", [0, 3000])
def test_a_disk_without_room_is_named_before_the_work_begins(
    configured: Make, tmp_path: Path, monkeypatch, free: int
):
    """With no room at all nothing is written; with room for the plan alone nothing is scored."""
    config = configured(tmp_path / "cache")
    monkeypatch.setattr(
        "reflogp.data_schemas.files.storage.shutil.disk_usage", lambda _: SimpleNamespace(free=free)
    )
    monkeypatch.setattr("reflogp.stages.precompute.stage.score", None)
    with pytest.raises(InputError, match=r"disk has 0\.0 MB free.*takes at least"):
        run_precompute(config, Silent())
    assert config.cache.exists() == bool(free)
