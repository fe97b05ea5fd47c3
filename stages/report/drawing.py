"""Chart -> inline SVG in the colours of the page, or a PNG or SVG file for a paper.

matplotlib draws the charts rather than a JavaScript library: they need no script, they print, the
same code draws the files for papers, and a chart takes about 20 kB, while plotly.js alone takes
1 MB or more.
"""

import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.files.ownership import Mark, require_output, write_mark
from reflogp.stages.report.chart import Chart, Ink, Plotted
from reflogp.stages.report.gather import Floats

ImageFormat = Literal["png", "svg"]

# matplotlib does not support CSS variables, so unique placeholder colours stand for them.
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
"""Dark on white. The first two series have the colours of base.html.jinja."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "reflogp",  # the same chart gives the same bytes
    "font.family": "sans-serif",
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify": True,
}
# larger text, because a phone shows a drawing at nine tenths of its size
_PAGE_STYLE = _STYLE | {
    "svg.fonttype": "none", "font.sans-serif": ["sans-serif"], "font.size": 12,
    "legend.fontsize": 11,
}  # fmt: skip


class Frame(NamedTuple):
    """The position and range of a drawing's axes.

    Attributes:
        box: left, top, right and bottom, as shares of the drawing's width and height.
        x: the values at left and right.
        y: the values at bottom and top.
    """

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]


def drawn(chart: Chart) -> dict[str, Any]:
    """Return a chart for figure.html.jinja: its attributes, its SVG, and the data of readout.js."""
    from markupsafe import Markup

    text, frame = _inline_svg(chart)
    svg = Markup(text)  # noqa: S704 - matplotlib's markup, which escapes
    return chart._asdict() | {"svg": svg, "readout": _readout(chart, frame)}


def _readout(chart: Chart, frame: Frame) -> dict[str, Any] | None:
    """Return the data of readout.js: the curves' values and their position in the drawing."""
    if not chart.curves:
        return None
    return frame._asdict() | {"curves": [_values(one) for one in chart.curves]}


def _values(one: Plotted) -> dict[str, Any]:
    colour = _VARIABLES[_SERIES[one.colour % len(_SERIES)]]
    found = {"name": one.name, "colour": colour, "steps": one.steps.astype(int).tolist()}
    found["values"] = _rounded(one.values)
    if (one.most > one.least).any():
        found |= {"least": _rounded(one.least), "most": _rounded(one.most)}
    return found


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]  # more digits than the page shows


def _inline_svg(chart: Chart) -> tuple[str, Frame]:
    file = io.StringIO()
    frame = _draw(chart, _PAGE, _PAGE_STYLE, file, "svg", title=False)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # prefix the ids, because the page has several charts
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{chart.name}-", text), frame


def save(charts: Sequence[Chart], png: Path | None, svg: Path | None) -> list[Path]:
    """Write charts for a paper to the given folders, black on white at 300 dpi.

    Raises:
        InputError: a folder already has a file with a chart's name that reflogp did not write.
    """
    forms: tuple[tuple[ImageFormat, Path | None], ...] = (("png", png), ("svg", svg))
    files = [
        (folder, f"{chart.name}.{form}", chart, form)
        for form, folder in forms
        if folder is not None
        for chart in charts
    ]
    for option, folder in (("--png", png), ("--svg", svg)):
        if folder is not None:
            _mark(option, folder, [name for place, name, *_ in files if place == folder])
    for folder, name, chart, form in files:
        with atomic_path(folder / name) as path:
            _draw(chart, PAPER, _STYLE, path, form, title=True)
    return [folder / name for folder, name, *_ in files]


def _mark(option: str, folder: Path, names: Sequence[str]) -> None:
    """List the files in the folder's mark before any of them is written."""
    mark = require_output(folder, "charts", option=option, overwrite=None) or Mark(kind="charts")
    for name in names:
        path = folder / name
        ours = name in mark.files and path.is_file() and not path.is_symlink()
        if os.path.lexists(path) and not ours:
            raise InputError(
                f"{option} {folder}: the folder has a file {name}, which is a chart's name, but "
                f"reflogp did not write {name}. Give another folder."
            )
    write_mark(folder, mark.model_copy(update={"files": sorted({*mark.files, *names})}))


def _draw(
    chart: Chart, ink: Ink, style: dict[Any, Any], file: Any, form: str, *, title: bool
) -> Frame:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # only the reader's machine needs the fonts
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
        left, bottom, right, top = map(float, axes.get_position().extents)  # final after drawing
    return Frame((left, 1 - top, right, 1 - bottom), axes.get_xlim(), axes.get_ylim())
