"""Diagnosis -> one HTML page."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.diagnose.charts import svg
from stages.diagnose.diagnosis import Diagnosis, Histogram
from stages.report.render import render

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(found: Diagnosis, reference: str) -> str:
    """The page as text.

    Args:
        found: the diagnosis, with or without the texts of its examples.
        reference: what scored the cache, as it was given.

    Raises:
        InputError: matplotlib or Jinja is not installed.
    """
    charts = [_chart(histogram) for histogram in found.histograms]
    return render(
        _TEMPLATE, found=found, charts=charts, reference=reference, version=version("reflogp")
    )


def _chart(histogram: Histogram) -> dict[str, Any]:
    from markupsafe import Markup

    edges = histogram.edges
    rows = zip(edges, edges[1:], *histogram.series.values(), strict=False)
    drawing = Markup(svg(histogram))  # noqa: S704 - our own markup: names and numbers, no data
    return {"histogram": histogram, "rows": list(rows), "svg": drawing}
