"""Many jobs make one cache: shares, merge, what it refuses, and jobs that meet."""

import shutil
from pathlib import Path

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.run import run_merge, run_precompute, run_share
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from tests.caches import rows_by_id

OF = 3


@pytest.fixture
def settings(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path / "cache",
        engine="transformers", max_length=192, shard_tokens=1500, verify_sample=2,
    )  # fmt: skip


def share_of(settings: PrecomputeConfig, number: int) -> PrecomputeConfig:
    return settings.model_copy(update={"share": f"{number}/{OF}"})


@pytest.fixture(scope="module")
def whole(checkpoint, few_preferences, tmp_path_factory) -> Path:
    """The same cache, made by one job."""
    from tests.conftest import Silent

    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), engine="transformers",
        cache=tmp_path_factory.mktemp("whole"), max_length=192, shard_tokens=1500, verify_sample=2,
    )  # fmt: skip
    run_precompute(config, Silent())
    return config.cache


def test_the_last_job_to_end_seals_what_all_have_made(settings, whole, console):
    for number in (2, 3):
        assert run_share(share_of(settings, number), console) is None
        assert not manifests.is_sealed(settings.cache)
    assert f"share 3/{OF} is done" in console.said[-1]
    manifest = run_share(share_of(settings, 1), console)
    assert manifest is not None
    assert len(manifest.jobs) == OF
    assert sum(job.shards for job in manifest.jobs) == len(manifest.shards)
    assert rows_by_id(settings.cache) == rows_by_id(whole)
    names = {path.name for path in settings.cache.iterdir()}
    assert names == {path.name for path in whole.iterdir()}


def test_a_share_that_was_done_is_not_done_again(settings, console):
    run_share(share_of(settings, 1), console)
    times = {path: path.stat().st_mtime_ns for path in settings.cache.glob("shard-*")}
    run_share(share_of(settings, 1), console)
    assert times
    assert {path: path.stat().st_mtime_ns for path in settings.cache.glob("shard-*")} == times


def test_one_job_finishes_what_shares_began(settings, whole, console):
    run_share(share_of(settings, 2), console)
    run_precompute(settings, console)
    assert rows_by_id(settings.cache) == rows_by_id(whole)


def test_merge_refuses_what_is_missing_and_seals_what_is_whole(settings, whole, console):
    for number in (1, 2):
        run_share(share_of(settings, number), console)
    with pytest.raises(ReflogpError, match=r"not sealed: shard-\w+-00002\.parquet is missing"):
        run_merge(settings.cache, console)
    # the last share is done elsewhere, and copied here
    other = settings.model_copy(update={"cache": settings.cache.with_name("other")})
    run_share(share_of(other, 3), console)
    for path in other.cache.glob("shard-*"):
        shutil.copy(path, settings.cache)
    plan = min(settings.cache.glob("plan-????????"))
    record = plan_record.read(plan)
    assert record is not None
    record.config["shard"] = f"1/{OF}"  # as earlier versions wrote it
    plan_record.write(plan, record)
    manifest = run_merge(settings.cache, console)
    assert rows_by_id(settings.cache) == rows_by_id(whole)
    assert manifest.verification is not None


def test_merge_refuses_foreign_duplicate_and_damaged_shards_by_name(settings, console):
    for number in (1, 2):
        run_share(share_of(settings, number), console)
    first = min(settings.cache.glob("shard-*-00000.parquet"))

    def named(number: int) -> Path:
        return first.with_name(first.name.replace("00000", f"{number:05d}"))

    shutil.copy(first, named(2))
    with pytest.raises(ReflogpError, match=r"00002\.parquet is a duplicate: .* of shard 00000"):
        run_merge(settings.cache, console)
    named(2).write_bytes(first.read_bytes()[:-7])
    with pytest.raises(ReflogpError, match=r"00002\.parquet is damaged"):
        run_merge(settings.cache, console)
    named(2).unlink()
    other = settings.model_copy(
        update={"max_length": 150, "cache": settings.cache.with_name("other")}
    )
    run_share(share_of(other, 3), console)
    shutil.copy(min(other.cache.glob("shard-*-00002.parquet")), named(2))
    shutil.copy(first, named(99))
    with pytest.raises(ReflogpError) as refused:
        run_merge(settings.cache, console)
    assert "00002.parquet is foreign: it was made from other inputs" in str(refused.value)
    assert "00099.parquet is foreign: the plan has no such shard" in str(refused.value)


def test_merge_without_a_plan_says_so(tmp_path, console):
    with pytest.raises(InputError, match="one complete plan"):
        run_merge(tmp_path / "nowhere", console)


def test_merge_leaves_a_sealed_cache_as_it_is(cache, console):
    assert run_merge(cache, console) == manifests.read(cache)
    assert any("sealed already" in line for line in console.said)


def test_a_job_whose_cache_another_one_seals_meanwhile_ends_well(
    settings, whole, console, monkeypatch
):
    """Two jobs do the same work; the other one is faster, seals the cache and clears the plan."""

    def be_overtaken(table, path):
        monkeypatch.setattr(worker, "write_shard", write_shard)
        run_precompute(settings, console)
        write_shard(table, path)

    monkeypatch.setattr(worker, "write_shard", be_overtaken)
    manifest = run_precompute(settings, console)
    assert manifest.inputs == manifests.read(settings.cache).inputs
    assert rows_by_id(settings.cache) == rows_by_id(whole)
    assert any("sealed by another job" in line for line in console.said)
