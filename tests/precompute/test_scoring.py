"""Several engines at a time give what one gives; an engine that dies is named."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import ReflogpError
from reflogp.pipeline.run import run_precompute
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import gpus_of_an_engine
from reflogp.stages.precompute.score.local import _devices, _environment
from tests.caches import rows, rows_by_id


@pytest.fixture
def settings(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path / "cache",
        engine="transformers", max_length=192, shard_tokens=1500, engines=2,
    )  # fmt: skip


def test_two_engines_give_the_rows_and_the_order_of_one(settings, cache, console):
    manifest = run_precompute(settings, console)
    assert len(manifest.shards) > 2
    assert any("2 engines" in line for line in console.said)

    found = rows_by_id(settings.cache)
    for expected in rows(cache):
        row = found.pop(expected["row_id"])
        for name, value in expected.items():
            same = (
                pytest.approx(value, rel=1e-5, abs=1e-4)
                if name.startswith("ref_") and value is not None
                else value
            )
            assert row[name] == same, name
    assert not found


def test_an_engine_that_is_killed_ends_the_run_with_a_message(settings, console):
    def kill_one():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        pid = children[0].pid
        assert pid
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(ReflogpError, match=r"of an engine died \(exit code -9\).*--engines"):
        run_precompute(settings, console)
    killer.join()
    assert not manifests.is_sealed(settings.cache)
    assert not multiprocessing.active_children()


def test_a_run_goes_on_after_the_shards_that_a_killed_one_finished(settings, console, monkeypatch):
    from reflogp.stages.precompute.score import worker

    written: list[Path] = []

    def die_at_the_third(table, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write_shard(table, path)

    one = settings.model_copy(update={"engines": 1})
    monkeypatch.setattr(worker, "write_shard", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_precompute(one, console)
    before = {path: path.stat().st_mtime_ns for path in written}
    # a third shard was damaged on the way: it is not taken for finished
    damaged = written[0].with_name(written[0].name.replace("00000", "00002"))
    damaged.write_bytes(written[0].read_bytes()[:100])
    monkeypatch.setattr(worker, "write_shard", write_shard)
    manifest = run_precompute(one, console)
    there = f"2 of {len(manifest.shards)} shards are finished from an earlier run"
    assert any(line.startswith(there) for line in console.said)
    assert any("00002.parquet is damaged" in line for line in console.warned)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    ids = [
        row_id
        for shard in manifest.shards
        for row_id in read_shard(one.cache / shard.file).column("row_id").to_pylist()
    ]
    assert len(set(ids)) == len(ids) == manifest.counts.rows == 22


def test_an_error_in_an_engine_reaches_the_user(settings, console, monkeypatch):
    # the weights go away after the fingerprint was taken, before the engines start
    from reflogp.stages.precompute.score import local as scoring

    def remove_weights(*arguments):
        next((settings.cache.parent / "checkpoint").glob("*.safetensors")).unlink()
        return devices(*arguments)

    import shutil

    copy = shutil.copytree(settings.reference, settings.cache.parent / "checkpoint")
    devices = scoring._devices
    monkeypatch.setattr(scoring, "_devices", remove_weights)
    with pytest.raises(ReflogpError, match="safetensors"):
        run_precompute(settings.model_copy(update={"reference": str(copy)}), console)


def test_each_engine_gets_gpus_for_its_tensor_and_pipeline_ranks(settings, monkeypatch):
    config = settings.model_copy(
        update={"tensor_parallel_size": 2, "engine_args": {"pipeline_parallel_size": 2}}
    )
    assert gpus_of_an_engine(settings) == 1
    assert gpus_of_an_engine(config) == 4
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4,3,2,1,0")
    assert [engine["CUDA_VISIBLE_DEVICES"] for engine in _devices(2, 4)] == ["7,6,5,4", "3,2,1,0"]
    with pytest.raises(ReflogpError, match=r"--engines 3 needs 12 GPUs, 4 for each .* are 8\."):
        list(_devices(3, 4))


def test_engines_share_the_cores_and_the_environment_is_put_back():
    shares = list(_devices(2, 1))
    cores = [core for share in shares for core in share["VLLM_CPU_OMP_THREADS_BIND"].split(",")]
    assert sorted(map(int, cores)) == sorted(os.sched_getaffinity(0))
    before = dict(os.environ)
    with _environment({"OMP_NUM_THREADS": "1", "REFLOGP_TEST": "1"}):
        assert os.environ["REFLOGP_TEST"] == "1"
    assert dict(os.environ) == before
