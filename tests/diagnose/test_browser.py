"""The page of a diagnosis in a real Chromium."""

import pytest

from reflogp.pipeline.curate import run_diagnose
from tests.conftest import Silent
from tests.planted import HOSTILE


@pytest.fixture(scope="module")
def path(faulty, tmp_path_factory):
    found = tmp_path_factory.mktemp("page") / "page.html"
    run_diagnose(faulty, found, Silent())
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1100, 390])
def test_it_opens_asks_for_nothing_fits_and_can_be_read(tab, path, width, dark):
    tab.problems.clear()
    tab.requests.clear()
    tab.screen(width, dark=dark)
    tab.open(path)
    assert tab.problems == []
    assert tab.requests == [path.resolve().as_uri()]
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.faint_texts() == []
    assert len(tab.faint_texts(least=22)) > 100  # it looks at them: 21 is black on white


def test_a_script_in_a_response_stays_text(tab, path):
    tab.screen(1100)
    tab.open(path)
    assert HOSTILE in tab.run(
        "[...document.querySelectorAll('pre')].map((e) => e.textContent).join()"
    )
    assert tab.run("document.querySelectorAll('script, img').length") == 0


def test_whatever_scrolls_can_be_reached_by_the_keyboard_and_shows_it(tab, path):
    tab.screen(390)
    tab.open(path)
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    scrolling = (
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('svg') &&"
        "/auto|scroll/.test(getComputedStyle(e).overflowY))"
    )
    assert tab.run(f"{scrolling}.length") > 4
    assert tab.run(f"{scrolling}.filter((e) => e.tabIndex < 0 || !e.ariaLabel).length") == 0
    tab.press("Tab")
    assert tab.run("document.activeElement.tagName") != "BODY"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
