"""Diagnosis -> one HTML page."""

from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from reflogp.stages.diagnose.diagnosis import LEGEND, Diagnosis, Histogram, group_table
from reflogp.stages.report.chart import Chart, Ink
from reflogp.stages.report.drawing import drawn
from reflogp.stages.report.histogram import draw_histogram
from reflogp.stages.report.render import render

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(found: Diagnosis, reference: str) -> str:
    """The page as text.

    Args:
        found: the diagnosis, with or without the texts of its examples.
        reference: what scored the cache, as it was given.
    """
    charts = [drawn(chart(histogram)) for histogram in found.histograms]
    tables = [group_table(one, found.kind) for one in found.grouped if one.groups is not None]
    return render(
        _TEMPLATE,
        found=found,
        charts=charts,
        tables=tables,
        legend=LEGEND if tables and found.kind == "paired" else "",
        reference=reference,
        version=version("reflogp"),
    )


def chart(histogram: Histogram) -> Chart:
    """The chart of a histogram."""

    def draw(axes: Any, ink: Ink) -> None:
        draw_histogram(axes, ink, histogram.edges, histogram.series)
        axes.set_xlabel(histogram.unit)
        axes.set_ylabel(histogram.of)
        axes.xaxis.set_major_formatter("{x:,g}")
        if histogram.edges[0] < 0 < histogram.edges[-1]:
            axes.axvline(0, color=ink.text, linewidth=0.8, linestyle=":")

    edges = histogram.edges
    return Chart(
        histogram.name, histogram.title, _note(histogram), draw,
        (f"from ({histogram.unit})", "to", *histogram.series),
        list(zip(edges, edges[1:], *histogram.series.values(), strict=False)),
        height=2.8,
    )  # fmt: skip


def _note(histogram: Histogram) -> str:
    """The bin of each median, as text for readers who cannot see the drawing."""
    said = [
        f"{name}: {sum(counts):,}, median between {low:.3g} and {high:.3g} {histogram.unit}"
        for name, counts in histogram.series.items()
        if sum(counts)
        for low, high in [_middle(histogram.edges, counts)]
    ]
    return "; ".join(said).capitalize() + "." if said else "Nothing to count."


def _middle(edges: list[float], counts: list[int]) -> tuple[float, float]:
    half = sum(counts) / 2
    number = next(i for i, reached in enumerate(accumulate(counts)) if reached >= half)
    return edges[number], edges[number + 1]
