"""A file is on the disk before it has its name, and its name before anything else is done."""

import pytest

from reflogp.data_schemas.files.atomic import atomic_path, write_text
from tests.faults.boundaries import Boundary, watch


@pytest.fixture
def calls(tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """What is written in `tmp_path`: each call, and the kind of path."""
    found: list[tuple[str, str]] = []

    def note(boundary: Boundary) -> None:
        kind = "folder" if boundary.path == str(tmp_path) else boundary.path.rpartition(".")[2]
        found.append((boundary.call, kind))

    watch(tmp_path, note, lambda _: None, monkeypatch.setattr)
    return found


def test_a_new_file_is_synced_then_renamed_then_its_folder_is_synced(tmp_path, calls):
    write_text(tmp_path / "a.json", "{}")
    order = [("write_text", "tmp"), ("fsync", "tmp"), ("replace", "tmp"), ("fsync", "folder")]
    assert [call for call in calls if call in order] == order


def test_so_is_one_that_may_not_replace_another(tmp_path, calls):
    with atomic_path(tmp_path / "a.json", keep=lambda: True) as temporary:
        temporary.write_text("{}")
    order = [("write_text", "tmp"), ("fsync", "tmp"), ("link", "tmp"), ("fsync", "folder")]
    assert [call for call in calls if call in order] == order
