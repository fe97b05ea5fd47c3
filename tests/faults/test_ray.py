"""A cache made on a Ray cluster is the one that a single process makes, whatever dies meanwhile."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.run import run_precompute
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard
from reflogp.stages.precompute.score.engines.choose import Choice, choose
from reflogp.stages.precompute.score.ray.actor import ShardActor
from reflogp.stages.precompute.score.ray.roster import TimeLimit
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.score.worker import Done
from reflogp.stages.precompute.share_and_actors import crew
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import THOROUGH, Make, names, require_equal

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def small(configured: Make) -> Make:
    """The usual job in many small shards."""
    return lambda cache: configured(cache).model_copy(update={"shard_tokens": 600})


@pytest.fixture(scope="module")
def single(small: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one process makes."""
    cache = tmp_path_factory.mktemp("single")
    processes.run(processes.precompute(small(cache)))
    return cache


@pytest.fixture(scope="module")
def by_itself(ray_alone: None) -> Iterator[None]:
    """Ray touches nothing outside, and ends with the module."""
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_cores(by_itself: None) -> None:
    """A Ray cluster of this machine with room for two actors."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def on_ray(config: PrecomputeConfig, **options: object) -> PrecomputeConfig:
    given = config.model_dump() | {"backend": "ray", "actors": "2"} | options
    return PrecomputeConfig.model_validate(given)


def shard_times(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("shard-*.parquet")}


def in_the_background(action: Callable[[], bool]) -> threading.Thread:
    """Call `action` until it says that it is done."""

    def watch() -> None:
        while not action():
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_actors_finish_what_a_share_began_though_one_of_them_is_killed(
    two_cores: None, small: Make, single: Path, tmp_path: Path, console: Silent
):
    begun = small(tmp_path).model_copy(update={"share": "1/4"})
    processes.run(processes.precompute(begun))
    before, killed = shard_times(tmp_path), []

    def kill() -> bool:
        if len(shard_times(tmp_path)) == len(before):
            return False
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it ends by itself just now
                if "ShardActor.score" in process.name():
                    process.kill()
                    killed.append(process.pid)
                    return True
        return False

    thread = in_the_background(kill)
    run_precompute(on_ray(small(tmp_path)), console)
    thread.join(1)
    require_equal(tmp_path, single)
    assert before
    assert before.items() <= shard_times(tmp_path).items()
    assert len(killed) == 1
    # none where it was killed between putting the shard in its place and saying so
    assert sum("failed 1 of 3 times" in warning for warning in console.warned) <= 1
    assert not any("failed 2 of" in warning for warning in console.warned)


@pytest.mark.slow
def test_a_shard_that_always_fails_is_reported_and_the_others_are_kept(
    two_cores: None,
    small: Make,
    single: Path,
    tmp_path: Path,
    console: Silent,
    monkeypatch: pytest.MonkeyPatch,
):
    processes.run(processes.precompute(small(tmp_path).model_copy(update={"share": "1/2"})))
    (damaged,) = tmp_path.glob("plan-*/plan-00001.arrow")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    monkeypatch.setattr("reflogp.stages.precompute.score.ray.scoring.ATTEMPTS", 2)
    with pytest.raises(ReflogpError, match=r"00001\.parquet on .*plan-00001\.arrow: damaged"):
        run_precompute(on_ray(small(tmp_path), actors="1"), console)
    missing = {name for name in names(single) if name.startswith("shard")} - names(tmp_path)
    assert [name[-13:] for name in missing] == ["00001.parquet"]
    assert sum(" of 2 times " in warning for warning in console.warned) == 2


class Hanging(ShardActor):
    """The first that gets the second shard has no end."""

    def score(self, planned: PlannedShard) -> Done:
        flag = self._job.config.cache.with_suffix(".hung")
        if planned.number == 1 and not flag.exists():
            flag.touch()
            time.sleep(3600)
        return super().score(planned)


@pytest.mark.slow
def test_an_actor_that_hangs_is_killed_and_its_shard_done_by_another(
    two_cores: None,
    small: Make,
    single: Path,
    tmp_path: Path,
    console: Silent,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("reflogp.stages.precompute.score.ray.roster.ShardActor", Hanging)
    # The limit covers an engine's start. A slow machine may have others stopped, too, which does no
    # harm.
    monkeypatch.setattr("reflogp.stages.precompute.score.ray.scoring.ATTEMPTS", 9)
    cache = tmp_path / "cache"
    processes.run(processes.precompute(small(cache).model_copy(update={"share": "1/4"})))
    run_precompute(on_ray(small(cache), shard_minutes=0.5), console)
    require_equal(cache, single)
    stopped = [warning for warning in console.warned if "00001.parquet failed 1" in warning]
    assert len(stopped) == 1
    assert "stopped after 0.5 minutes" in stopped[0]


def test_the_limit_of_a_shard_follows_from_the_slowest_one():
    limit = TimeLimit(None)
    assert limit.seconds(1_000) == 3600
    assert limit.seconds(100_000) == 100_000  # none is known to be faster yet
    limit.measure(1_000, 1.0)
    limit.measure(1_000, 0.5)
    assert limit.seconds(10) == 3600
    assert limit.seconds(1_000_000) == 20_000
    assert TimeLimit(2).seconds(1_000_000) == 120


def test_actors_that_find_no_room_end_the_run(
    two_cores: None, small: Make, tmp_path: Path, console: Silent, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reflogp.stages.precompute.score.ray.scoring.START_SECONDS", 1.0)
    message = r"0 of the minimum of 2 --actors .* Each needs 4 GPUs, .* 2 CPU"
    with pytest.raises(ReflogpError, match=message):
        run_precompute(on_ray(small(tmp_path), actor_gpus=4), console)


def test_without_ray_the_message_says_how_to_get_it(
    small: Make, tmp_path: Path, console: Silent, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"reflogp\[ray\]"):
        run_precompute(on_ray(small(tmp_path)), console)


NOWHERE = Checkpoint(Path("/nowhere"), None, "float32")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": NOWHERE}, "/nowhere does not exist on the node"),
        ({"engine": Choice("transformers", "0.1", "")}, r"made with transformers 0\.1\."),
    ],
)
def test_a_node_that_cannot_do_the_work_says_so(
    changed: dict[str, Any], message: str, small: Make, single: Path, checkpoint: Path
):
    manifest, engine = manifests.read(single), choose("transformers", checkpoint)
    job = Job(small(single), Checkpoint(checkpoint, None, "float32"), engine, manifest.inputs)
    job.path("plan").mkdir(exist_ok=True)
    known = ScoredRows(single, "")
    assert ShardActor(job, known).check()
    with pytest.raises(InputError, match=message):
        ShardActor(replace(job, **changed), known).check()
    job.path("plan").rmdir()
    with pytest.raises(InputError, match=r"plan-.* does not exist on the node"):
        ShardActor(job, known).check()


@pytest.mark.parametrize(("text", "bounds"), [("2-8", (2, 8)), ("4", (4, 4)), (3, (3, 3))])
def test_the_number_of_actors_has_bounds(text: str | int, bounds: tuple[int, int]):
    assert crew(text) == bounds


@pytest.mark.parametrize("text", ["", "0-2", "3-2", "-2", "2-", "many", "1-2-3"])
def test_what_bounds_nothing_is_refused(text: str):
    with pytest.raises(ValueError, match="actor"):
        crew(text)


@pytest.mark.skipif(not THOROUGH, reason="a cluster of three nodes takes its time: make faults")
def test_a_node_that_dies_costs_nothing_but_its_shards(
    by_itself: None, small: Make, single: Path, tmp_path: Path, console: Silent
):
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill() -> bool:
        if not shard_times(tmp_path):
            return False
        raylet = nodes[0].all_processes["raylet"][0].process.pid
        family = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
        return True

    try:
        thread = in_the_background(kill)
        run_precompute(on_ray(small(tmp_path), address=cluster.address, actors="1-2"), console)
        thread.join(1)
        assert not thread.is_alive()
        require_equal(tmp_path, single)
    finally:
        ray.shutdown()
        cluster.shutdown()
