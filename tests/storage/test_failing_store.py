"""A store that fails in the middle: it is tried again, and an outage is taken for nothing else."""

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import StorageError
from reflogp.pipeline.run import run_integrity, run_precompute, run_share
from tests.caches import file_names, rows_by_id
from tests.storage.conftest import keys

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("kind", ["500", "503", "drop", "lost", "stall"])
def test_scoring_goes_on_when_a_fault_passes(
    settings, proxy, console, local_rows, kind, monkeypatch
):
    monkeypatch.setattr("reflogp.data_schemas.files.retries.PATIENCE_SECONDS", 60.0)
    proxy.fail(kind, "PUT", "00002.parquet", times=2 if kind == "stall" else 1)
    run_precompute(settings, console)
    assert proxy.failed >= 1
    assert not any("earlier run" in line for line in console.said)
    assert rows_by_id(settings.cache) == local_rows


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("drop", marks=pytest.mark.slow),
        "lost",
        pytest.param("stall", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_stays_down_ends_the_run_and_the_next_one_completes_it(
    settings, s3, proxy, console, local_rows, kind
):
    proxy.fail(kind, "PUT", "00002.parquet")
    with pytest.raises(StorageError, match=r"00002\.parquet: the storage failed: .*run the"):
        run_precompute(settings, console)
    proxy.heal()
    # whole, where only the answers were lost; else not there at all
    there = [key for key in keys(s3) if key.startswith("shard-")]
    assert any("00002" in key for key in there) == (kind == "lost")
    # the next shard may have been scored by then, and is kept as well
    assert len(there) in ((3, 4) if kind == "lost" else (2, 3))
    assert "manifest.json" not in keys(s3)
    run_precompute(settings, console)
    assert any(f"{len(there)} of 5 shards are finished" in line for line in console.said)
    assert rows_by_id(settings.cache) == local_rows
    assert run_integrity(settings.cache, console) == []


@pytest.mark.parametrize("kind", ["half", pytest.param("stall", marks=pytest.mark.slow)])
def test_an_outage_is_not_taken_for_a_cache_that_is_gone(settings, proxy, console, kind):
    manifest = run_precompute(settings, console)
    # the listing comes through, the content does not
    proxy.fail(kind, "GET", "manifest.json")
    with pytest.raises(StorageError, match=r"manifest\.json: the storage failed"):
        run_precompute(settings, console)
    proxy.heal()
    assert run_precompute(settings, console) == manifest
    assert "up to date" in console.said[-1]


@pytest.mark.parametrize(
    "part",
    [
        "00001.parquet",
        pytest.param("plan.json", marks=pytest.mark.slow),
        pytest.param("quarantine", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_damage(
    settings, s3, proxy, console, local_rows, part
):
    for number in (1, 2):
        run_share(settings.model_copy(update={"share": f"{number}/3"}), console)
    before = {key: s3.head_object(Bucket="bucket", Key=f"some/cache/{key}") for key in keys(s3)}
    proxy.fail("500", "GET", part)
    with pytest.raises(StorageError, match=part):
        run_precompute(settings, console)
    proxy.heal()
    run_precompute(settings, console)
    for key in keys(s3):
        if key.startswith("shard-") and key in before:
            again = s3.head_object(Bucket="bucket", Key=f"some/cache/{key}")
            assert again["LastModified"] == before[key]["LastModified"]
    assert rows_by_id(settings.cache) == local_rows


def test_a_listing_that_fails_is_not_an_empty_folder(settings, proxy, console):
    run_precompute(settings, console)
    proxy.fail("503", "GET", "list-type=2")
    with pytest.raises(StorageError, match="a bad day"):
        run_integrity(settings.cache, console)
    with pytest.raises(StorageError):
        manifests.is_sealed(settings.cache)


def test_a_bucket_that_cannot_be_written_to_is_known_before_any_work(
    settings, proxy, console, monkeypatch
):
    monkeypatch.setattr("reflogp.stages.precompute.stage.make_plan", None)
    proxy.fail("403", "PUT", "")
    with pytest.raises(StorageError, match="permit listing, reading, writing") as refused:
        run_precompute(settings, console)
    assert refused.value.exit_code == 2


def test_what_cannot_be_removed_is_removed_by_a_later_command(settings, s3, proxy, console):
    proxy.fail("403", "DELETE", "plan-")
    manifest = run_precompute(settings, console)
    assert any(key.startswith("plan-") for key in keys(s3))
    proxy.heal()
    assert run_precompute(settings, console) == manifest
    assert keys(s3) == file_names(manifest)
