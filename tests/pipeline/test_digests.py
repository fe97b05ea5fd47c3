"""Digests are remembered for files that did not change, and for no others."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from reflogp.pipeline import digests
from reflogp.pipeline.digests import file_digests

SIZE = 1 << 10


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(digests, "_WORTH_REMEMBERING", SIZE)
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    return tmp_path / "home" / "reflogp" / "digests.json"


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / name for name in ("large", "larger", "small")]
    for path, size in zip(paths, (SIZE, 2 * SIZE, SIZE - 1), strict=True):
        path.write_bytes(os.urandom(size))
    return paths


def true_digests(paths: list[Path]) -> list[bytes]:
    return [hashlib.sha256(path.read_bytes()).digest() for path in paths]


def test_what_is_worth_it_is_remembered_and_read_once(files, memory, monkeypatch):
    assert file_digests(files) == true_digests(files)
    assert len(json.loads(memory.read_text())) == 2
    read: list[Path] = []

    def spy(path: Path) -> str:
        read.append(path)
        return "0" * 64

    monkeypatch.setattr(digests, "_digest", spy)
    assert file_digests(files)[:2] == true_digests(files)[:2]
    assert read == files[2:]


def test_a_file_that_was_written_again_is_read_again(files):
    file_digests(files)
    status = files[0].stat()
    files[0].write_bytes(os.urandom(SIZE))
    # same size, same date: the time of the change is not the user's to set
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digests(files) == true_digests(files)


def test_a_file_of_this_moment_is_not_remembered(files, memory, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 60_000_000_000)
    assert file_digests(files) == true_digests(files)
    assert not memory.exists()


@pytest.mark.parametrize("content", ["", "[1]", "\x00", '{"a": 7}', '{"a": "no digest"}'])
def test_a_memory_that_is_damaged_is_forgotten(files, memory, content):
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    assert file_digests(files) == true_digests(files)
    assert len(json.loads(memory.read_text())) == 2


def test_a_home_that_cannot_be_written_to_is_no_error(files, memory):
    memory.parent.parent.write_text("a file where the folder should be")
    assert file_digests(files) == true_digests(files)
