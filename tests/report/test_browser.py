"""The page in a real Chromium: what it asks for, shows and computes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from reflogp.data_schemas import scored_pairs
from reflogp.pipeline.publish import run_report
from reflogp.stages.report import page as pages
from reflogp.stages.report.explorer import EXPLORED, FIXED
from reflogp.stages.train.losses.arguments import parameters
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.registry import LOSSES
from tests.conftest import Silent
from tests.diagnose.test_page import contrast
from tests.report.conftest import HOSTILE

SIDES = ("chosen", "rejected")
STYLE = Path(pages.__file__).with_name("page.css")


@pytest.fixture(scope="module")
def report(hostile_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    run_report([hostile_run], path, None, None, Silent())
    return path


@pytest.fixture
def opened(tab, report):
    """The report in a wide light window, with nothing asked for or reported yet."""
    tab.problems.clear()
    tab.requests.clear()
    tab.screen(1100)
    tab.open(report)
    return tab


@pytest.fixture
def explorer(tab, tmp_path):
    """The page without a run."""
    path = tmp_path / "explorer.html"
    assert run_report([], path, tmp_path, None, Silent()) == [path]
    tab.problems.clear()
    tab.screen(1100)
    tab.open(path)
    return tab


def of_log_ratios(name, chosen, rejected, **given):
    """The Python loss and its slopes by both log-ratios."""
    c, r = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected))
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    pairs = PairLogps(c, r, zero, zero, one, one)
    loss = LOSSES[name].function(pairs, **given, **FIXED.get(name, {}))
    loss.sum().backward()
    slopes = [0.0 if x.grad is None else x.grad.item() for x in (c, r)]
    return [loss.item(), *slopes]


def test_the_page_opens_without_an_error_and_asks_for_nothing(opened, report):
    assert opened.problems == []
    assert opened.requests == [report.resolve().as_uri()]
    assert opened.run("document.querySelector('#explorer').hidden") is False


def test_what_is_text_in_the_data_stays_text(opened):
    assert opened.run("document.title").startswith("Run ")
    assert opened.run("document.querySelectorAll('img').length") == 0
    assert opened.run("document.querySelectorAll('script').length") == 2  # data, and our own
    assert opened.run("document.querySelector('.tokens > i').textContent") == HOSTILE
    text = opened.run("document.body.textContent")
    assert text.count(HOSTILE) > 10
    assert "run <b>" in opened.run("document.querySelector('h1').textContent")


def test_a_script_that_is_not_ours_would_not_run(opened):
    opened.run(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{textContent: 'document.title = `ran`'}))"
    )
    assert opened.run("document.title") != "ran"
    assert any("Content Security Policy" in problem for problem in opened.problems)


def test_every_loss_in_javascript_is_the_one_in_python(explorer):
    assert sorted(explorer.run("Object.keys(LOSSES)")) == sorted(EXPLORED)
    points = [(0.3, -0.2), (-4.1, 2.7), (11.3, 4.9), (-18.7, -6.2), (6.4, 19.3)]
    for name in EXPLORED:
        defaults = {k: p.default for k, p in parameters(LOSSES[name].function).items()}
        given = {k: v for k, v in defaults.items() if k not in FIXED.get(name, {})}
        for beta in (given["beta"], 0.7):
            mine = given | {"beta": beta}
            for chosen, rejected in points:
                call = f"{chosen}, {rejected}, {json.dumps(mine)}"
                found = explorer.run(
                    f"[LOSSES.{name}({call}), ...pushes(LOSSES.{name}, {call}).map((x) => -x)]"
                )
                expected = of_log_ratios(name, chosen, rejected, **mine)
                assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-14), (name, call)
                size = max(1.0, abs(expected[0]))
                assert found[1:] == pytest.approx(expected[1:], rel=1e-4, abs=1e-8 * size), name


def test_losses_stay_finite_far_out(explorer):
    losses = "JSON.parse(document.getElementById('explorer-data').textContent).losses"
    for name in EXPLORED:
        for point in ("800, -800", "-800, 800"):
            call = f"LOSSES.{name}({point}, {losses}.{name}.arguments)"
            assert explorer.run(f"Number.isFinite({call})"), name


def shown(tab, name):
    text = tab.run(f"document.querySelector('[data-is={name}]').textContent")
    return float(text.replace("\u2212", "-"))


def move(tab, name, value, kind="input"):
    """As a hand on the control would."""
    tab.run(
        f"(() => {{ const control = document.querySelector('[data-is={name}]');"
        f"control.value = {json.dumps(value)};"
        f"control.dispatchEvent(new Event('{kind}', {{bubbles: true}})); }})()"
    )


@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpop", "fdpo_js"])
def test_sliders_change_the_numbers_to_those_of_the_python_loss(explorer, loss):
    move(explorer, "loss-name", loss, "change")
    move(explorer, "chosen-slider", -3.4)
    move(explorer, "rejected-slider", 1.7)
    move(explorer, "beta-slider", -0.5)
    beta = 10**-0.5
    assert shown(explorer, "margin") == pytest.approx(-5.1, abs=1e-4)
    assert shown(explorer, "scaled") == pytest.approx(-5.1 * beta, abs=1e-4)
    assert shown(explorer, "probability") == pytest.approx(1 / (1 + np.exp(5.1 * beta)), abs=1e-4)
    assert shown(explorer, "weight") == pytest.approx(1 / (1 + np.exp(-5.1 * beta)), abs=1e-4)
    value, by_chosen, by_rejected = of_log_ratios(loss, -3.4, 1.7, beta=beta)
    assert shown(explorer, "loss") == pytest.approx(value, rel=1e-3, abs=1e-4)
    assert shown(explorer, "up") == pytest.approx(-by_chosen, rel=1e-3, abs=1e-4)
    assert shown(explorer, "down") == pytest.approx(-by_rejected, rel=1e-3, abs=1e-4)


def test_the_arrow_keys_move_a_slider_and_the_numbers_follow(explorer):
    explorer.run("document.querySelector('[data-is=chosen-slider]').focus()")
    before = shown(explorer, "margin")
    explorer.press("ArrowRight")
    assert shown(explorer, "margin") == pytest.approx(before + 0.1, abs=1e-4)
    assert explorer.run("document.querySelector('[data-is=chosen-number]').value") == "2.1"


def test_a_real_pair_of_the_run_can_be_loaded(opened, run):
    pairs = scored_pairs.read(run)
    move(opened, "pair", "2", "change")
    opened.run("document.querySelector('[data-is=load]').click()")
    pair = pairs[2]
    c, r = (
        pair[f"policy_{s}_logp_sum"] - pair[f"ref_{s}_logp_sum"] for s in ("chosen", "rejected")
    )
    assert shown(opened, "margin") == pytest.approx(c - r, abs=1e-3)
    assert shown(opened, "scaled") == pytest.approx(pair["margin"], abs=1e-3)
    assert shown(opened, "loss") == pytest.approx(of_log_ratios("dpo", c, r)[0], abs=1e-3)
    opened.run("document.querySelector('button[data-pair]').click()")
    number = int(opened.run("document.querySelector('button[data-pair]').dataset.pair"))
    assert shown(opened, "scaled") == pytest.approx(pairs[number]["margin"], abs=1e-3)


def test_arrow_keys_go_from_token_to_token_and_say_its_numbers(opened, run):
    opened.run("document.querySelector('.tokens').focus()")
    for _ in range(2):
        opened.press("ArrowRight")
    text = opened.run("document.querySelector('#tip').textContent").replace("\u2212", "-")
    number = int(opened.run("document.querySelector('button[data-pair]').dataset.pair"))
    pair = scored_pairs.read(run)[number]
    policy, reference = pair["policy_chosen_logps"][1], pair["ref_chosen_logps"][1]
    found = [float(x) for x in re.findall(r"-?\d+\.\d{3}", text)]
    assert text.startswith("token 2, ")
    assert found == pytest.approx([policy - reference, policy, reference], abs=2e-3)


FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
CHART = "document.querySelector('[aria-labelledby=chart-{}]')"


def read_off(tab):
    """The readout as numbers by name: value, and the step if it is another one."""
    lines = tab.run("[...document.querySelectorAll('.readout p')].map((p) => p.textContent)")
    found = {}
    for line in lines:
        text = line.replace("\u2212", "-")
        match = re.fullmatch(r"(.+?) ([-\d.e+]+)(?:, step (\d+))?", text)
        assert match, text
        name, value, step = match.groups()
        found[name] = (float(value), step and int(step))
    return found


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        kind: {line["step"]: line for line in lines if name in line}
        for kind, name in (("train", "loss"), ("eval", "eval_loss"))
    }


def test_the_pointer_reads_the_values_of_a_step_off_a_chart(opened, run):
    metrics, chart = metrics_of(run), CHART.format("reward-chosen-rejected")
    opened.run(f"{chart}.scrollIntoView({{block: 'center'}})")
    opened.run(FRAMES)
    left, top, width, height = opened.run(
        f"(() => {{ const box = {chart}.getBoundingClientRect();"
        " return [box.left, box.top, box.width, box.height]; })()"
    )
    steps = sorted(metrics["train"])
    seen = set()
    for share in (0.3, 0.5, 0.7, 0.97):
        opened.point(left + share * width, top + height / 2)
        found = read_off(opened)
        step = int(found.pop("step")[0])
        seen.add(step)
        held_out = min(metrics["eval"], key=lambda other: (abs(other - step), other))
        for side in SIDES:
            expected = metrics["train"][step][f"rewards/{side}"]
            assert found[side] == (pytest.approx(expected, rel=1e-3, abs=6e-5), None)
            value, at = found[f"{side}, held out"]
            assert at == (None if held_out == step else held_out)
            expected = metrics["eval"][held_out][f"eval_rewards/{side}"]
            assert value == pytest.approx(expected, rel=1e-3, abs=6e-5)
    assert len(seen) == 4
    assert max(seen) == steps[-1]
    opened.point(5, 5)
    assert opened.run("document.querySelector('.readout').hidden")


def test_the_marks_of_the_readout_lie_on_the_curve(opened):
    chart = CHART.format("loss")
    opened.run(f"{chart}.focus(), {FRAMES}")  # it scrolls there, which takes a readout away
    for _ in range(3):
        opened.press("ArrowRight")
    marks, drawn = opened.run(
        f"[[...{chart}.querySelectorAll('.marks circle')].map((e) => [+e.getAttribute('cx'), "
        f"+e.getAttribute('cy')]), [...{chart}.querySelectorAll('path[style*=\"series-\"]')]"
        ".map((e) => e.getAttribute('d'))]"
    )
    points = np.array([
        [float(x), float(y)] for path in drawn for x, y in re.findall(r"[ML] (\S+) (\S+)", path)
    ])  # fmt: skip
    assert len(marks) == 2
    for mark in marks:
        assert np.abs(points - mark).max(axis=1).min() < 0.01


def test_the_arrow_keys_read_a_chart_step_by_step(opened, run):
    metrics, chart = metrics_of(run), CHART.format("loss")
    steps = sorted(metrics["train"])
    opened.run(f"{chart}.focus(), {FRAMES}")  # it scrolls there, which takes a readout away
    for key, step in (
        ("ArrowRight", steps[0]), ("ArrowRight", steps[1]), ("End", steps[-1]),
        ("ArrowRight", steps[-1]), ("ArrowLeft", steps[-2]), ("Home", steps[0]),
    ):  # fmt: skip
        opened.press(key)
        found = read_off(opened)
        assert found["step"][0] == step
        loss = metrics["train"][step]["loss"]
        assert found["trained on"][0] == pytest.approx(loss, rel=1e-3, abs=6e-5)
        said = opened.run(f"{chart}.ariaValueText")
        spoken = re.match(rf"step {step}; trained on (\S+); held out ", said)
        assert spoken is not None
        number = float(spoken[1].replace("\N{MINUS SIGN}", "-"))
        assert number == pytest.approx(loss, rel=1e-3, abs=6e-5)
    opened.press("Escape")
    assert opened.run("document.querySelector('.readout').hidden")


def test_without_a_script_a_chart_is_a_picture_with_a_table(report):
    text = report.read_text()
    assert text.count("data-readout=") == 4
    assert text.count('<div role="img"') == text.count("<svg") - 3  # the explorer's are its own
    assert 'role="slider"' not in text


def test_pairs_can_be_chosen_by_the_reason_to_show_them(opened):
    visible = "[...document.querySelectorAll('.pair')].filter((p) => !p.hidden)"
    every = opened.run(f"{visible}.length")
    # which pairs have moved most is up to the training; one of them has not
    opened.run("document.querySelector('.pair').dataset.reasons = 'still wrong'")
    opened.run("document.querySelector('[name=reason][value=\"moved most\"]').click()")
    reasons = opened.run(f"{visible}.map((pair) => pair.dataset.reasons)")
    assert 0 < len(reasons) < every
    assert all("moved most" in reason for reason in reasons)


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_a_phone(tab, report, dark):
    tab.screen(360, dark=dark)
    tab.open(report)
    assert tab.run("document.documentElement.scrollWidth") == 360
    assert tab.faint_texts() == []


def test_everything_that_reacts_has_a_name_and_can_be_reached(opened):
    unnamed = opened.run(
        "[...document.querySelectorAll('input, select, button, [tabindex]')].filter((e) =>"
        "!e.hidden && !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert unnamed == 0
    ids = opened.run("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    opened.run("document.querySelector('[data-is=loss-name]').focus()")
    reached = []
    for _ in range(6):
        opened.press("Tab")
        reached.append(opened.run("document.activeElement.dataset.is"))
    assert reached == [
        f"{n}-{k}" for n in ("chosen", "rejected", "beta") for k in ("number", "slider")
    ]


def test_without_a_run_the_page_is_the_explorer_alone(explorer):
    assert explorer.problems == []
    assert shown(explorer, "loss") == pytest.approx(of_log_ratios("dpo", 2.0, -1.0)[0], abs=1e-4)
    assert explorer.run("document.querySelector('[data-is=load]')") is None


def test_text_has_a_contrast_of_4_5_on_every_shade_of_a_token():
    base = (STYLE.parent / "base.html.jinja").read_text()
    grounds = [colours(block) for block in re.findall(r":root \{(.*?)\}", base, re.DOTALL)]
    own = [colours(block) for block in re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)]
    assert len(grounds) == len(own) == 3
    for shared, more in zip(grounds, own, strict=True):
        for name in (f"{sign}{level}" for sign in "pn" for level in range(1, 5)):
            assert contrast(shared["ink"], more[name]) >= 4.5, name
        for number in range(3, 9):  # graphics: WCAG 1.4.11
            assert contrast(more[f"series-{number}"], shared["page"]) >= 3
        for number in (1, 2):  # also names of responses
            assert contrast(shared[f"series-{number}"], shared["page"]) >= 4.5


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
