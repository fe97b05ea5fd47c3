"""Charts of metrics over steps, for one run or several overlaid."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from reflogp.stages.report.chart import Chart, Ink, Plotted
from reflogp.stages.report.gather import Curve, FinishedRun, Floats
from reflogp.stages.report.pair_charts import SIDES

_POINTS = 300  # per curve on the page; more are indistinguishable
_ALL_POINTS = 1600  # over all runs' curves in one chart
_FEWEST_POINTS = 24
_TABLE = 24  # rows
_NAME = 28  # characters of a run's name in a legend
_REWARDS = ("rewards/chosen", "rewards/rejected")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1)), (0, (8, 2, 2, 2)))  # distinct without colour
_MARKERS = "oDs^vP*X"


NOTE = (
    "Lines without markers are training metrics: means over each step's pairs, before its update. "
    "Markers are held-out pairs. Accuracy is the share of pairs whose chosen response has the "
    "higher reward."
)


class Binned(NamedTuple):
    """A curve reduced to bins, each with its last step, and its mean, least and greatest value."""

    steps: Floats
    means: Floats
    least: Floats
    most: Floats


class _Line(NamedTuple):
    label: str
    curve: Binned
    colour: int
    dash: Any
    held_out: bool


def charts(runs: Sequence[FinishedRun]) -> list[Chart]:
    """Return the charts of loss, margin, rewards and accuracy over steps."""
    loss = ("loss", "Loss", ["loss"])
    margin = ("margin", "Margin of the rewards", ["rewards/margins"])
    accuracy = ("accuracy", "Accuracy", ["rewards/accuracies"])
    both = ("reward-chosen-rejected", "Reward of chosen and rejected", [*_REWARDS])
    each = [(f"reward-{side}", f"Reward of {side}", [f"rewards/{side}"]) for side in SIDES]
    rewards = [both] if len(runs) == 1 else each
    found = [_chart(runs, *panel) for panel in (loss, margin, *rewards, accuracy)]
    return [chart for chart in found if chart.rows]


def _chart(runs: Sequence[FinishedRun], name: str, title: str, metrics: Sequence[str]) -> Chart:
    most = max(_FEWEST_POINTS, min(_POINTS, _ALL_POINTS // len(runs)))
    lines = [
        line
        for number, run in enumerate(runs)
        for metric in metrics
        for line in _lines(run, metric, None if len(runs) == 1 else number, most)
    ]

    def draw(axes: Any, ink: Ink) -> None:
        for line in lines:
            _draw_line(axes, ink, line)
        axes.set_xlabel("step")
        axes.set_ylabel(title.lower())
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name == "accuracy":
            axes.set_ylim(-0.02, 1.02)
        if name != "loss":
            level = 0.5 if name == "accuracy" else 0
            axes.axhline(level, color=ink.line, linewidth=1, zorder=0)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.04, -0.17), ncols=2)

    was_binned = any((line.curve.most > line.curve.least).any() for line in lines)
    note = "Lines are means of neighbouring steps, bands their range." if was_binned else ""
    header = ("series", "steps up to", "mean", "least", "greatest")
    rows = [row for line in lines for row in _rows(line)]
    plotted = [Plotted(line.label, line.colour, *line.curve) for line in lines]
    height = 3.1 + 0.2 * -(-len(lines) // 2)
    return Chart(name, title, note, draw, header, rows, height, plotted)


def _lines(run: FinishedRun, metric: str, number: int | None, most: int) -> list[_Line]:
    """Return the lines of a metric, of training and of the held-out pairs.

    A single run's lines have a colour per metric; with several runs, each run has its own colour
    and dashes.
    """
    if number is not None:
        label, colour, dash = run.name[-_NAME:], number, _DASHES[number % len(_DASHES)]
    elif metric in _REWARDS:
        label, colour = metric.rpartition("/")[2], _REWARDS.index(metric)
        dash = _DASHES[colour]
    else:
        label, colour, dash = "trained on", 2, "-"  # not the colour of chosen or rejected
    return [
        _Line(text, binned(run.curves[name], most), colour, dash, held_out)
        for name, text, held_out in (
            (metric, label, False),
            (f"eval_{metric}", "held out" if label == "trained on" else f"{label}, held out", True),
        )
        if name in run.curves
    ]


def _draw_line(axes: Any, ink: Ink, line: _Line) -> None:
    colour = ink.series[line.colour % len(ink.series)]
    steps, means, least, most = line.curve
    if line.held_out:
        axes.plot(
            steps, means, color=colour, linewidth=0.9, linestyle=(0, (2, 2)), label=line.label,
            marker=_MARKERS[line.colour % len(_MARKERS)], markersize=5,
        )  # fmt: skip
        return
    axes.plot(steps, means, color=colour, linestyle=line.dash, label=line.label)
    if (most > least).any():
        axes.fill_between(steps, least, most, color=colour, alpha=0.18, linewidth=0)


def binned(curve: Curve, most: int) -> Binned:
    """Reduce a curve to at most `most` bins of neighbouring points.

    Returns:
        The bins, float64 [m] each; a bin's step is the last of its steps.
    """
    if len(curve.steps) <= most:
        return Binned(curve.steps, curve.values, curve.values, curve.values)
    edges = np.linspace(0, len(curve.steps), most + 1).astype(int)
    starts, ends = edges[:-1], edges[1:]
    return Binned(
        curve.steps[ends - 1],
        np.add.reduceat(curve.values, starts) / (ends - starts),
        np.minimum.reduceat(curve.values, starts),
        np.maximum.reduceat(curve.values, starts),
    )


def _rows(line: _Line) -> list[tuple[Any, ...]]:
    steps, means, least, most = line.curve
    edges = np.linspace(0, len(steps), min(_TABLE, len(steps)) + 1).astype(int)
    return [
        (line.label, int(steps[end - 1]), float(means[start:end].mean()),
         float(least[start:end].min()), float(most[start:end].max()))
        for start, end in pairwise(edges)
    ]  # fmt: skip
