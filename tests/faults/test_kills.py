"""Killed with SIGKILL at any instant and at every write, a run that is repeated loses nothing."""

import random
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.files.location import location
from reflogp.pipeline.run import run_integrity
from tests.caches import rows
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import THOROUGH, Make, Record, names, require_equal, times
from tests.faults.processes import Command, kill_after, kill_at

EVERY = 1_000_000
SHARES = 3


@pytest.fixture(scope="module")
def usual(configured: Make, sound: Path, tmp_path_factory) -> float:
    """Seconds that a run takes which is not killed."""
    folder = tmp_path_factory.mktemp("usual")
    processes.run(processes.precompute(configured(folder / "warm")))
    return processes.run(processes.precompute(configured(folder / "cache")))


def kill_until_done(command: Command, usual: float, source: random.Random) -> int:
    """Kill a command again and again, until it comes to its end first; how often."""
    kills = 0
    while kill_after(command, source.uniform(0, usual)):
        kills += 1
    return kills


@times(2, 6, 100)
def test_killed_at_random_instants_again_and_again(
    configured: Make, sound: Path, usual: float, tmp_path: Path, record_fault: Record, times: int
):
    source, kills, caches = random.Random(0), 0, 0
    while kills < times:
        cache = tmp_path / f"cache-{caches}"
        kills += kill_until_done(processes.precompute(configured(cache)), usual, source)
        require_equal(cache, sound)
        caches += 1
    record_fault("killed at a random instant", kills, f"{caches} caches")


@times(2, 6, EVERY)
def test_killed_before_and_after_each_write(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record, times: int
):
    counted = tmp_path / "counted"
    found = processes.writes(processes.precompute(configured(counted)), counted)
    calls = {boundary.call for boundary in found}
    assert calls >= {"replace", "link", "fsync", "write_text", "write_bytes", "write_table"}
    moments = [(one.number, moment) for one in found for moment in ("before", "after")]
    moments = random.Random(1).sample(moments, min(times, len(moments)))
    for number, moment in moments:
        cache = tmp_path / f"{moment}-{number}"
        command = processes.precompute(configured(cache))
        assert kill_at(command, cache, number, moment), (number, moment)
        processes.run(command)
        require_equal(cache, sound)
    record_fault("killed before or after a write", len(moments), f"{len(found)} writes")


def test_killed_before_and_after_each_put_to_a_url(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record
):
    def by_url(folder: Path) -> Command:
        return processes.precompute(
            configured(folder).model_copy(update={"cache": location(f"local://{folder}")})
        )

    counted = tmp_path / "counted"
    found = processes.writes(by_url(counted), counted)
    puts = [one.number for one in found if one.call in {"put_file", "mv"}]
    moments = [(number, moment) for number in puts for moment in ("before", "after")]
    for number, moment in moments if THOROUGH else random.Random(9).sample(moments, 3):
        folder = tmp_path / f"{moment}-{number}"
        assert kill_at(by_url(folder), folder, number, moment), (number, moment)
        processes.run(by_url(folder))
        require_equal(folder, sound)
    record_fault("killed before or after a put", len(moments), f"{len(puts)} puts and moves")


def test_one_of_many_jobs_is_killed_and_so_is_the_merge(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record
):
    cache, source, kills, merges = tmp_path / "cache", random.Random(2), 0, 0
    config = configured(cache)
    for number in (1, 2, 3):
        share = processes.precompute(config.model_copy(update={"share": f"{number}/{SHARES}"}))
        if number == SHARES:  # so that no share seals what merge is to seal
            lent = tmp_path / "lent"
            alone = config.model_copy(update={"share": f"{number}/{SHARES}", "cache": lent})
            processes.run(processes.precompute(alone))
            for path in lent.glob("shard-*"):
                path.rename(cache / path.name)
            continue
        for write in source.sample(range(30), 5 if THOROUGH else 1):
            kills += kill_at(share, cache, write, "after")
        processes.run(share)
    assert kills
    assert not manifests.is_sealed(cache)
    begun = tmp_path / "begun"
    merged = processes.writes(processes.merge(_copy(cache, begun)), begun)
    require_equal(begun, sound)
    moments = [(one.number, moment) for one in merged for moment in ("before", "after")]
    for number, moment in moments if THOROUGH else random.Random(3).sample(moments, 3):
        copy = _copy(cache, tmp_path / f"{moment}-{number}")
        assert kill_at(processes.merge(copy), copy, number, moment), (number, moment)
        processes.run(processes.merge(copy))
        require_equal(copy, sound)
        merges += 1
    record_fault("a share of three killed", kills, "2 shares")
    record_fault("merge killed before or after a write", merges, f"{len(merged)} writes")


def _copy(cache: Path, target: Path) -> Path:
    return shutil.copytree(cache, target)


@pytest.mark.skipif(not THOROUGH, reason="each engine imports torch again; make faults")
def test_a_parent_of_two_engines_is_killed_and_they_end_by_themselves(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record
):
    source, kills, caches = random.Random(5), 0, 3
    for number in range(caches):
        cache = tmp_path / f"cache-{number}"
        two = processes.precompute(configured(cache).model_copy(update={"engines": 2}))
        for _ in range(2):
            process = processes.start(two)
            engines: list[psutil.Process] = []
            while len(engines) < 2 and process.exitcode is None:
                process.join(0.05)
                with suppress(psutil.NoSuchProcess):
                    engines = psutil.Process(process.pid).children()
            process.join(source.uniform(0, 6))
            process.kill()
            process.join()
            kills += process.exitcode == processes.KILLED
            _, alive = psutil.wait_procs(engines, timeout=60)
            assert not alive, "an engine outlives its parent"
        processes.run(two)
        require_equal(cache, sound)
    assert kills
    record_fault("parent of two engines killed", kills, f"{caches} caches")


def test_killed_while_it_replaces_another_cache(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record
):
    """The earlier cache is whole until the new one is sealed; then nothing of it is left."""
    other = tmp_path / "other"
    earlier = configured(other).model_copy(update={"max_length": 150})
    processes.run(processes.precompute(earlier))
    counted = _copy(other, tmp_path / "counted")
    found = processes.writes(processes.precompute(configured(counted)), counted)
    first = next(one.number for one in found if "/.manifest-" in one.path)
    last = [one.number for one in found if one.number >= first - 3]
    chosen = last if THOROUGH else random.Random(4).sample(last, 3)
    for number in chosen:
        cache = _copy(other, tmp_path / f"at-{number}")
        command = processes.precompute(configured(cache))
        assert kill_at(command, cache, number, "after"), number
        assert manifests.read(cache).inputs in {
            manifests.read(other).inputs, manifests.read(sound).inputs
        }  # fmt: skip
        processes.run(command)
        assert names(cache) == names(sound)
        assert [row["row_id"] for row in rows(cache)] == [row["row_id"] for row in rows(sound)]
        assert run_integrity(cache, Silent()) == []
    record_fault("killed while one cache replaces another", len(chosen), f"{len(last)} writes")
