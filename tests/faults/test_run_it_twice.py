"""The same work gives the same bytes, also when it was interrupted."""

from pathlib import Path

from tests.faults import processes
from tests.faults.conftest import Make, require_equal


def shards(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*.parquet")}


def test_two_runs_give_the_same_bytes_one_of_them_killed(
    configured: Make, sound: Path, tmp_path: Path
):
    again, killed = tmp_path / "again", tmp_path / "killed"
    processes.run(processes.precompute(configured(again)))
    command = processes.precompute(configured(killed))
    writes = processes.writes(processes.precompute(configured(tmp_path / "c")), tmp_path / "c")
    second = next(one for one in writes if "shard" in one.path and "00001" in one.path)
    assert processes.kill_at(command, killed, second.number, "before")
    processes.run(command)
    assert shards(again) == shards(killed) == shards(sound)
    require_equal(again, sound)
