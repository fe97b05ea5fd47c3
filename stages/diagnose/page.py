"""Diagnosis -> one HTML page."""

from importlib.metadata import version
from pathlib import Path

from stages.diagnose.charts import chart
from stages.diagnose.diagnosis import Diagnosis
from stages.report.drawing import drawn
from stages.report.render import render

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(found: Diagnosis, reference: str) -> str:
    """The page as text.

    Args:
        found: the diagnosis, with or without the texts of its examples.
        reference: what scored the cache, as it was given.
    """
    charts = [drawn(chart(histogram)) for histogram in found.histograms]
    return render(
        _TEMPLATE, found=found, charts=charts, reference=reference, version=version("reflogp")
    )
