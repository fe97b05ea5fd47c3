"""Actors of a Ray cluster put their shards into a bucket themselves."""

import pytest

from reflogp.pipeline.run import run_integrity, run_precompute
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.caches import file_names, rows_by_id
from tests.storage.conftest import keys

ray = pytest.importorskip("ray")


@pytest.fixture
def two_cores(s3, ray_alone):
    """A Ray cluster of this machine, whose nodes know the server."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_actors_make_the_cache_of_a_single_process_in_a_bucket(
    s3, two_cores, settings, local_rows, console, monkeypatch
):
    def never(*_):
        raise AssertionError("the driver wrote a shard")

    monkeypatch.setattr(
        "reflogp.stages.precompute.score.worker.write_shard", never
    )  # in this process alone
    on_ray = settings.model_dump() | {"backend": "ray", "actors": "1-2"}
    manifest = run_precompute(PrecomputeConfig.model_validate(on_ray), console)
    # ids with all that is told of them, in the same order
    assert list(rows_by_id(settings.cache).items()) == list(local_rows.items())
    assert keys(s3) == file_names(manifest)
    assert run_integrity(settings.cache, console) == []
