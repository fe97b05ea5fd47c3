"""The report without a browser: what it reads, refuses, bins, chooses and compares."""

import json
import shutil

import numpy as np
import pytest

from reflogp.data_schemas import scored_pairs
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.publish import run_report
from reflogp.stages.report import tables
from reflogp.stages.report.curves import binned
from reflogp.stages.report.gather import Curve, Floats, gather, short_names
from reflogp.stages.report.page import LIMIT, page
from reflogp.stages.report.pair_charts import calibration
from reflogp.stages.report.shown_pairs import choose_pairs, shown

STEPS = 100_000


def copied(run, folder, **settings):
    """The same run with other settings."""
    shutil.copytree(run, folder)
    path = folder / "reflogp_run.json"
    record = json.loads(path.read_text())
    record["settings"] |= settings
    path.write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def long_metrics():
    """The lines of 100,000 steps, a held-out evaluation each hundredth."""
    lines, names = [], ("chosen", "rejected", "margins", "accuracies")
    for step in range(1, STEPS + 1):
        entry = {"step": step, "loss": 0.5 + np.sin(step) / 9, "grad_norm": 1.0}
        entry |= {f"rewards/{name}": np.cos(step + i) for i, name in enumerate(names)}
        lines.append(json.dumps(entry))
        if step % 100 == 0:
            lines.append(json.dumps({"step": step, "eval_loss": 0.6, "eval_rewards/margins": 0.2}))
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_runs_of_a_hundred_thousand_steps_and_long_texts_stay_below_two_megabytes(
    run, tmp_path, long_metrics
):
    folders = []
    for number in range(3):
        folder = copied(run, tmp_path / str(number), beta=number + 1)
        (folder / "metrics.jsonl").write_text(long_metrics)
        pairs = scored_pairs.read(folder)
        for pair in pairs:
            for side in ("prompt", "chosen", "rejected"):
                pair[f"{side}_pieces"] = ["<&>" * 4000] * len(pair[f"{side}_ids"])
        scored_pairs.write(folder, pairs)
        folders.append(folder)
    runs = gather(folders)
    assert len(runs[0].curves["loss"].steps) == STEPS
    assert 100_000 < len(page(runs[:1]).encode()) < LIMIT
    text = page(runs)
    assert len(text.encode()) < LIMIT == 2_000_000
    assert "means of neighbouring steps" in text


def test_binning_keeps_means_ranges_and_the_last_step():
    values: Floats = np.sin(np.arange(1000.0)) ** 3
    steps: Floats = np.arange(1, 1001).astype(np.float64)
    found = binned(Curve(steps, values), 300)
    assert len(found.steps) == 300
    assert found.steps[-1] == 1000
    assert found.most.max() == values.max()
    assert found.least.min() == values.min()
    assert (found.least <= found.means).all()
    assert (found.means <= found.most).all()
    weights = np.diff(found.steps, prepend=0)
    assert np.average(found.means, weights=weights) == pytest.approx(values.mean())
    few = Curve(np.array([1.0, 5.0]), np.array([0.1, 0.2]))
    assert binned(few, 300).steps is few.steps


def test_calibration_finds_a_policy_that_is_as_sure_as_it_is_right_and_one_that_is_surer():
    random = np.random.default_rng(0)
    sure = random.uniform(0, 3, 4000)
    right = random.uniform(size=4000) < 1 / (1 + np.exp(-sure))
    margins = np.where(right, sure, -sure)
    bins = calibration(margins)
    assert sum(b.pairs for b in bins) == 4000
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
    assert sum(b.low <= b.confidence <= b.high for b in bins) >= len(bins) - 1
    overconfident = calibration(3 * margins)
    assert all(b.high < b.confidence for b in overconfident[2:-1])


def test_pairs_are_shown_for_moving_falling_and_being_wrong():
    def pair(chosen, rejected):
        row = {f"ref_{s}_logp_sum": -9.0 for s in ("chosen", "rejected")}
        row |= {"policy_chosen_logp_sum": chosen - 9.0, "policy_rejected_logp_sum": rejected - 9.0}
        return row | {"margin": 0.1 * (chosen - rejected)}

    pairs = [pair(0.5, 0.1), pair(8, -8), pair(-3, -9), pair(0.2, 1.0), pair(0.3, 0.1)]
    assert choose_pairs(pairs, each=1) == {
        1: ["moved most"],
        2: ["chosen fell"],
        3: ["still wrong"],
    }
    assert set(choose_pairs(pairs, each=9)) == {0, 1, 2, 3, 4}
    assert choose_pairs([], each=4) == {}


def test_the_shade_of_a_token_follows_its_log_ratio(run):
    pairs = scored_pairs.read(run)
    for one in shown(pairs):
        pair = pairs[one.number]
        for response in one.responses:
            policy = np.array(pair[f"policy_{response.side}_logps"])
            ratios = policy - np.array(pair[f"ref_{response.side}_logps"])
            levels = [token.level for token in response.tokens]
            assert all(
                np.sign(level) in (0, np.sign(r)) for level, r in zip(levels, ratios, strict=False)
            )
            order = np.argsort(ratios[: len(levels)], kind="stable")
            assert np.all(np.diff(np.array(levels)[order]) >= 0)
            assert response.log_ratio == pytest.approx(ratios.sum(), rel=1e-5, abs=1e-3)


def test_runs_side_by_side_say_what_differs(run, tmp_path):
    other = copied(run, tmp_path / "other", beta=0.5, output="elsewhere")
    (other / scored_pairs.FILE_NAME).unlink()
    runs = gather([run, other])
    assert tables.settings(runs, differing=True) == [("beta", ["0.1", "0.5"])]
    text = page(runs)
    assert "2 runs side by side" in text
    assert "other: no scored pairs" in text
    names = [name for name, _ in tables.final_figures(runs)]
    assert names[:3] == ["loss", "margin", "accuracy"]


def test_names_of_runs_are_as_short_as_they_can_be(tmp_path):
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]


def test_charts_are_written_as_files_for_papers(run, tmp_path, console):
    written = run_report([run], tmp_path / "r.html", tmp_path / "png", tmp_path / "svg", console)
    charts = [
        "accuracy",
        "chosen-rejected",
        "length-reward",
        "log-ratios",
        "loss",
        "margin",
        "reward-chosen-rejected",
    ]
    for kind in ("png", "svg"):
        files = {path.name for path in (tmp_path / kind).iterdir()}
        assert files == {"reflogp.json", *(f"{chart}.{kind}" for chart in charts)}
    assert (tmp_path / "png" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "svg" / "loss.svg").read_text().startswith("<?xml")
    assert set(written) == {tmp_path / "r.html", *tmp_path.glob("???/*.???")}


def test_the_same_run_gives_the_same_page(run):
    assert page(gather([run])) == page(gather([run]))


def test_what_is_no_finished_run_is_refused(run, tmp_path, console):
    with pytest.raises(InputError, match=r"no finished run: it has no reflogp_run\.json"):
        run_report([tmp_path], None, None, None, console)
    with pytest.raises(InputError, match="given twice"):
        run_report([run, run / "."], None, None, None, console)
    broken = copied(run, tmp_path / "broken")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": 0.')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line \d+: not JSON .*Remove the line"):
        run_report([broken], None, None, None, console)
    (broken / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match=r"line 1: not the metrics of a step"):
        run_report([broken], None, None, None, console)
    assert not list(tmp_path.rglob("*.html"))
