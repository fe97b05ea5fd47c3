"""Histograms of one or two series over the same bins, distinct without colour."""

from collections.abc import Mapping, Sequence
from typing import Any

from reflogp.stages.report.chart import Ink

FAINT = 0.3
"""Opacity of the first of two series, on which the second's outline has a contrast of 3."""


def draw_histogram(
    axes: Any, ink: Ink, edges: Sequence[float], series: Mapping[str, Sequence[int]]
) -> None:
    """Draw one series as solid bars, or two as faint bars with hatched bars over them.

    Args:
        axes: matplotlib Axes.
        ink: the colours.
        edges: edges of the bins, [n + 1].
        series: counts by name, [n] each.
    """
    for number, (name, counts) in enumerate(series.items()):
        colour = ink.series[number]
        face = (colour, 1 if len(series) == 1 else 0 if number else FAINT)
        axes.stairs(
            counts, edges, fill=True, facecolor=face, edgecolor=colour, label=name, linewidth=1.4,
            hatch="////" if number else None,
        )  # fmt: skip
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if len(series) > 1:
        axes.legend(loc="best")
