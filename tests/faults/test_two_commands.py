"""Two commands on one cache at the same time: the last to seal wins, and that cache is right."""

import random
import time
from pathlib import Path

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_integrity
from tests.caches import rows
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import Make, Record, names, require_equal, times


@times(1, 3, 20)
def test_two_commands_with_the_same_inputs(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record, times: int
):
    source = random.Random(7)
    for number in range(times):
        cache = tmp_path / f"cache-{number}"
        command = processes.precompute(configured(cache))
        first = processes.start(command)
        time.sleep(source.uniform(0, 1))
        second = processes.start(command)
        processes.finish(first)
        processes.finish(second)
        require_equal(cache, sound)
    record_fault("two commands at once, same inputs", times, "all caches equal")


@times(1, 3, 20)
def test_two_commands_with_other_inputs(
    configured: Make, sound: Path, tmp_path: Path, record_fault: Record, times: int
):
    source, alone = random.Random(8), tmp_path / "alone"
    shorter = {"max_length": 150}
    processes.run(processes.precompute(configured(alone).model_copy(update=shorter)))
    truths = {manifests.read(cache).inputs.digest(): cache for cache in (alone, sound)}
    for number in range(times):
        config = configured(tmp_path / f"cache-{number}")
        first = processes.start(processes.precompute(config))
        time.sleep(source.uniform(0, 1))
        second = processes.start(processes.precompute(config.model_copy(update=shorter)))
        processes.finish(first)
        processes.finish(second)
        truth = truths[manifests.read(config.cache).inputs.digest()]
        assert run_integrity(config.cache, Silent()) == []
        assert [row["row_id"] for row in rows(config.cache)] == [
            row["row_id"] for row in rows(truth)
        ]
        processes.run(processes.precompute(config))
        require_rows(config.cache, sound)
    record_fault("two commands at once, other inputs", times, "all caches whole")


def require_rows(cache: Path, sound: Path) -> None:
    assert [row["row_id"] for row in rows(cache)] == [row["row_id"] for row in rows(sound)]
    assert run_integrity(cache, Silent()) == []
    assert names(cache) == names(sound)
