"""Diagnosis -> one HTML page."""

from importlib.metadata import version
from pathlib import Path

from stages.diagnose.charts import chart
from stages.diagnose.diagnosis import Diagnosis
from stages.diagnose.group_table import LEGEND, group_table
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
