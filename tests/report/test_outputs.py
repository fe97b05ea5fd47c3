"""Pages and charts replace what reflogp wrote, and nothing else."""

import shutil
import sys
from pathlib import Path

import pytest

from reflogp.data_schemas.files.ownership import Mark, read_mark, write_mark
from reflogp.pipeline.cli import main
from tests.snapshots import snapshot

PAGE = {"report": "--output", "diagnose": "--html"}
FOREIGN = "<!doctype html>\n<html><head><title>Mine</title></head></html>\n"


@pytest.fixture
def reflogp(monkeypatch, capsys):
    """The command, in this process: its exit code, and what it says on stderr in one line."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reflogp", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, " ".join(capsys.readouterr().err.split())

    return call


@pytest.fixture
def places(tmp_path, cache, run):
    """A cache, a run, and files that reflogp did not write."""
    shutil.copytree(cache, tmp_path / "cache")
    if read_mark(tmp_path / "cache") is None:
        write_mark(tmp_path / "cache", Mark(kind="cache"))
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "page.html").write_text(FOREIGN)
    (tmp_path / "mine" / "gap.png").write_bytes(b"mine")
    (tmp_path / "mine" / "empty.html").touch()
    (tmp_path / "mine" / "link.html").symlink_to(tmp_path / "mine" / "page.html")
    (tmp_path / "mine" / "device.html").symlink_to("/dev/null")
    (tmp_path / "mine" / "dangling.html").symlink_to(tmp_path / "mine" / "nothing.html")
    (tmp_path / "folder.html").mkdir()
    return tmp_path


def inputs(command: str, places: Path) -> tuple[str, Path]:
    return command, places / ("run" if command == "report" else "cache")


@pytest.mark.parametrize("command", PAGE)
def test_a_page_replaces_nothing_that_reflogp_did_not_write(command, places, reflogp):
    shard = next(path.name for path in (places / "cache").iterdir() if "shard" in path.name)
    targets = [
        "cache/manifest.json", f"cache/{shard}", "cache/page.html", "cache/deep/page.html",
        "run/adapter_model.safetensors", "run/README.md", "mine/page.html", "mine/empty.html",
        "mine/link.html", "mine/device.html", "mine/dangling.html", "folder.html", "page.txt",
        "mine/page.html/page.html",
    ]  # fmt: skip
    before = snapshot(places)
    for target in [
        *(places / name for name in targets),
        "/dev/null",
        "",
        " ",
        "s3://bucket/x.html",
    ]:
        code, said = reflogp(*inputs(command, places), PAGE[command], target)
        assert code in {1, 2}, target
        assert said, target
        assert snapshot(places) == before, target


@pytest.mark.parametrize("command", PAGE)
def test_a_page_replaces_its_own_kind(command, places, reflogp):
    page = places / "new folder" / "page.html"
    for _ in range(2):
        code, said = reflogp(*inputs(command, places), PAGE[command], page)
        assert code == 0, said
    assert [*page.parent.iterdir()] == [page]
    before = page.read_bytes()
    code, _ = reflogp("report", "--explorer-only", "--output", page)
    assert code == 0
    assert page.read_bytes() != before


def test_the_default_page_in_a_run_replaces_no_page_of_the_users(places, reflogp):
    (places / "run" / "report.html").write_text(FOREIGN)
    before = snapshot(places)
    code, said = reflogp("report", places / "run")
    assert code == 2
    assert "reflogp did not write it" in said
    assert snapshot(places) == before
    (places / "run" / "report.html").unlink()
    assert reflogp("report", places / "run")[0] == 0
    after = snapshot(places)
    after.pop(str(places / "run" / "report.html"))
    assert {name: what for name, what in before.items() if "report.html" not in name} == after


@pytest.mark.parametrize(("command", "option"), [("report", "--svg"), ("diagnose", "--png")])
def test_charts_are_written_to_new_folders_and_their_own_only(command, option, places, reflogp):
    page = (PAGE[command], places / "page.html")
    for target in (places / "mine", places / "cache", places / "cache" / "charts", "",
                   places / "run", places / "mine" / "page.html"):  # fmt: skip
        before = snapshot(places)
        code, said = reflogp(*inputs(command, places), *page, option, target)
        assert code == 2, (target, said)
        assert snapshot(places) == before, target
    charts = places / "charts"
    assert reflogp(*inputs(command, places), *page, option, charts)[0] == 0
    names = [path.name for path in charts.glob(f"*.{option[2:]}")]
    assert names
    (charts / "mine.txt").write_text("mine")
    one = charts / names[0]
    one.unlink()
    one.symlink_to(places / "mine" / "page.html")
    before = snapshot(places)
    code, said = reflogp(*inputs(command, places), *page, option, charts)
    assert code == 2
    assert names[0] in said
    assert snapshot(places) == before
    one.unlink()
    assert reflogp(*inputs(command, places), *page, option, charts)[0] == 0
    assert (charts / "mine.txt").read_text() == "mine"


def test_a_chart_that_reflogp_did_not_write_stays(places, reflogp):
    charts = places / "charts"
    assert reflogp("report", places / "run", "--png", charts)[0] == 0
    (charts / "gap.png").write_bytes(b"mine")  # the name of one of diagnose's charts
    before = snapshot(charts)
    code, said = reflogp("diagnose", places / "cache", "--png", charts)
    assert code == 2
    assert "did not write gap.png" in said
    assert snapshot(charts) == before


def test_a_page_that_cannot_be_made_leaves_the_earlier_one(places, reflogp):
    page = places / "page.html"
    assert reflogp("diagnose", places / "cache", "--html", page)[0] == 0
    next((places / "cache").glob("shard-*")).write_bytes(b"damaged")
    before = snapshot(places)
    assert reflogp("diagnose", places / "cache", "--html", page, "--png", places / "png")[0] == 2
    assert snapshot(places) == before
