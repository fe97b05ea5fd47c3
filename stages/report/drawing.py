"""Chart -> inline SVG whose colours follow the page, or a PNG or SVG file for a paper.

matplotlib and not a library in JavaScript: the charts stand without a script, they print, the same
code draws the files for papers, and a chart takes some 20 kB where plotly.js takes 1 MB or more.
"""

import io
import logging
import re
from pathlib import Path
from typing import Any, Literal

from data_schemas.atomic import atomic_path
from stages.report.chart import Chart, Ink

Form = Literal["png", "svg"]

# matplotlib takes no CSS variables, so it draws in colours that nothing else has.
_VARIABLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--line)",
    **{f"#0303{number:02d}": f"var(--series-{number})" for number in range(1, 9)},
}
_TEXT, _LINE, *_SERIES = _VARIABLES
_PAGE = Ink(_TEXT, _LINE, _SERIES)
PAPER = Ink(
    "#000000",
    "#bbbbbb",
    ("#2f6fb0", "#b8560f", "#00795c", "#a8407c", "#6a51a3", "#7a6a00", "#00748c", "#555555"),
)
"""Dark on white; the first two are those of base.html.jinja."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "reflogp",  # the same chart gives the same bytes
    "font.family": "sans-serif",
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify": True,
}
_PAGE_STYLE = _STYLE | {"svg.fonttype": "none", "font.sans-serif": ["sans-serif"]}


def inline_svg(chart: Chart) -> str:
    """The chart as an `<svg>` element for the page."""
    file = io.StringIO()
    _draw(chart, _PAGE, _PAGE_STYLE, file, "svg", title=False)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # ids of its own: there are other charts on the page
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{chart.name}-", text)


def save(chart: Chart, folder: Path, form: Form) -> Path:
    """Write the chart to `folder`, for a paper: black on white, 300 dots an inch."""
    target = folder / f"{chart.name}.{form}"
    with atomic_path(target) as path:
        _draw(chart, PAPER, _STYLE, path, form, title=True)
    return target


def _draw(
    chart: Chart, ink: Ink, style: dict[Any, Any], file: Any, form: str, *, title: bool
) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # the reader's machine has the fonts, this one need not
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with rc_context(style):
        figure = Figure(figsize=(5.6, chart.height), layout="constrained")
        axes = figure.add_subplot()
        chart.draw(axes, ink)
        if title:
            axes.set_title(chart.title, fontsize=11)
        axes.tick_params(colors=ink.text, length=3)
        axes.xaxis.label.set_color(ink.text)
        axes.yaxis.label.set_color(ink.text)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(ink.line)
        if (legend := axes.get_legend()) is not None:
            for text in legend.get_texts():
                text.set_color(ink.text)
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(file, format=form, dpi=300, transparent=not title, metadata=metadata)
