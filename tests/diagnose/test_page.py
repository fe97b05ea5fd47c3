"""The page: one file, no script, nothing fetched, and what data says stays text."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.curate import run_diagnose
from reflogp.stages.diagnose.diagnosis import Histogram
from reflogp.stages.diagnose.page import chart
from reflogp.stages.report.histogram import FAINT
from tests.planted import HOSTILE


class Elements(HTMLParser):
    """Counts elements and keeps attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(faulty, tmp_path_factory) -> str:
    from tests.conftest import Silent

    path = tmp_path_factory.mktemp("page") / "page.html"
    run_diagnose(faulty, path, Silent())
    return path.read_text(encoding="utf-8")


def test_a_response_that_is_a_script_stays_text(page):
    found = Elements(page)
    assert HOSTILE in "".join(found.texts)
    assert not {"script", "img", "iframe", "object", "link"} & set(found.tags)
    assert not any(name.startswith("on") for name, _ in found.attributes)


def test_nothing_is_fetched_and_scripts_are_forbidden(page):
    assert "default-src 'none'" in page
    for name, value in Elements(page).attributes:
        if name in {"src", "href", "xlink:href"}:
            assert str(value).startswith("#"), (name, value)
    assert not re.search(r"url\((?!#)|@import", page)


def test_every_finding_and_chart_is_there_with_its_numbers(page, faulty, console):
    diagnosis = run_diagnose(faulty, None, console)
    found = Elements(page)
    text = " ".join("".join(found.texts).split())
    assert all(one.title in text for one in diagnosis.findings)
    assert found.tags.count("svg") == found.tags.count("table") == len(diagnosis.histograms) == 4
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [value for name, value in found.attributes if name == "aria-labelledby"]
    assert set(labels) <= set(ids)
    assert found.attributes.count(("tabindex", "0")) >= 4  # what scrolls can be reached


def test_each_chart_says_where_its_middle_is(page, faulty, console):
    text = " ".join("".join(Elements(page).texts).split())
    for one in run_diagnose(faulty, None, console).histograms:
        for name, counts in one.series.items():
            said = re.search(
                rf"(?i){name}: {sum(counts)}, median between (\S+) and (\S+) {one.unit}", text
            )
            assert said, name
    values = [0, 0, 0, 2.5, 9, 9, 9]
    edges = [-1.0, 1, 2, 3, 10]
    found = Histogram(
        name="x", title="", unit="nats", of="pairs", edges=edges,
        series={"pairs": np.histogram(values, edges)[0].tolist()},
    )  # fmt: skip
    assert chart(found).note == "Pairs: 7, median between 2 and 3 nats."


def test_charts_are_written_as_files_for_papers(faulty, tmp_path, console):
    found = run_diagnose(faulty, None, console, tmp_path / "png", tmp_path / "svg")
    names = sorted(one.name for one in found.histograms)
    assert sorted(path.stem for path in (tmp_path / "png").glob("*.png")) == names
    assert sorted(path.stem for path in (tmp_path / "svg").glob("*.svg")) == names
    assert (tmp_path / "png" / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_cache_gives_the_same_page(page, faulty, tmp_path, console):
    run_diagnose(faulty, tmp_path / "again.html", console)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_text_has_a_contrast_of_4_5_light_dark_and_printed(page):
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "link", "problem", "warning", "fine", "note"):
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("series-1", "series-2"):  # graphics: WCAG 1.4.11
            assert contrast(colours[name], colours["page"]) >= 3, name
        bars = blended(colours["series-1"], colours["page"], FAINT)
        assert contrast(colours["series-2"], bars) >= 3  # an outline that crosses them


def blended(colour: str, ground: str, share: float) -> str:
    """What a colour that is so opaque looks like on another."""
    pairs = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    lighter, darker = sorted(map(luminance, (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_without_the_libraries_for_pages_the_message_says_what_to_install(
    faulty, tmp_path, console, monkeypatch, library
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"need {library}.*Run pip install {library}\."):
        run_diagnose(faulty, tmp_path / "page.html", console)
    assert not (tmp_path / "page.html").exists()
