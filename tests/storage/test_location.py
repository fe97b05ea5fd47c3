"""Where a cache may be, and stores of other kinds than S3."""

import pickle
from pathlib import Path

import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.location import is_local, location
from reflogp.data_schemas.files.storage import (
    entries,
    modified,
    put,
    read_bytes,
    read_end,
    remove,
    remove_if_empty,
)
from reflogp.pipeline.run import run_integrity, run_precompute
from tests.caches import file_names, rows_by_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a/b", "a/b"),
        (Path("a/b/"), "a/b"),
        ("file:///srv/a%20b/", "/srv/a b"),
        ("file://localhost/srv/x", "/srv/x"),
        ("~/cache", "{home}/cache"),
        ("s3://bucket/x/cache/", "s3://bucket/x/cache"),
        ("S3://bucket", "s3://bucket/"),
        ("memory://a/b", "memory://a/b"),
    ],
)
def test_a_location_is_a_folder_or_a_url(monkeypatch, tmp_path, given, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = location(given)
    assert str(found) == expected.format(home=tmp_path)
    assert location(found) == found
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - as it goes to an engine
    assert is_local(found) == ("://" not in expected)


@pytest.mark.parametrize(
    "given",
    ["s3:/bucket/x", Path("s3://bucket/x"), "s3:bucket", "s3://", "file://host/x", "xy://z"],
)
def test_what_is_no_location_is_refused(given):
    with pytest.raises(InputError):
        location(given)


@pytest.fixture(params=["disk", "memory", "local"])
def folder(request, tmp_path) -> Path:
    """On disk; in a store that puts whole; on a file system of fsspec's that can rename."""
    if request.param == "disk":
        return tmp_path / "cache"
    return location(f"{request.param}://{tmp_path}/cache")


def test_files_are_put_listed_read_and_removed_alike(folder, tmp_path):
    assert entries(folder) == {}
    with pytest.raises(FileNotFoundError):
        read_bytes(folder / "a")
    with pytest.raises(FileNotFoundError):
        read_end(folder / "a", 3)
    assert modified(folder / "a") is None
    remove(folder / "a")
    if is_local(folder):
        (folder / "plan").mkdir(parents=True)
        (folder / "a").write_bytes(b"12345")
    else:
        (tmp_path / "file").write_bytes(b"12345")
        for target in (folder / "a", folder / "a", folder / "plan" / "b"):
            put(tmp_path / "file", target)
    assert entries(folder) == {"a": 5, "plan": None}
    assert read_bytes(folder / "a") == b"12345"
    assert [read_end(folder / "a", count) for count in (2, 9)] == [b"45", b"12345"]
    assert modified(folder / "a")
    remove(folder / "a")
    if not is_local(folder):
        remove_if_empty(folder / "plan")
        assert entries(folder) == {"plan": None}
        remove(folder / "plan" / "b")
    remove_if_empty(folder / "plan")
    remove_if_empty(folder / "plan")
    assert entries(folder) == {}


def test_a_cache_in_any_store_has_the_same_rows(settings, folder, console, local_rows):
    settings = settings.model_copy(update={"cache": folder})
    manifest = run_precompute(settings, console)
    assert rows_by_id(folder) == local_rows
    assert run_integrity(folder, console) == []
    assert run_precompute(settings, console) == manifest
    assert sorted(entries(folder)) == file_names(manifest)
