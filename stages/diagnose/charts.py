"""Histogram -> inline SVG whose colours follow the page, light, dark or printed.

Drawn by matplotlib, so that ticks and labels are right. Static SVG and no script: it prints, it is
30 kB a chart, and the page can forbid scripts, whatever a response says.
"""

import io
import re
from typing import Any

from stages.diagnose.diagnosis import Histogram
from stages.report.render import missing

# matplotlib takes no CSS variables, so it draws in colours that nothing else has.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--line)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
}
_INK, _LINE, *_SERIES = _COLOURS
_HATCHES = ("", "////")  # told apart without colour, too
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "reflogp",  # the same chart gives the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["sans-serif"],
    "hatch.linewidth": 0.6,
}


def svg(histogram: Histogram) -> str:
    """The chart as an `<svg>` element.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        return _drawn(histogram)
    except ImportError as error:
        raise missing(error) from error


def _drawn(histogram: Histogram) -> str:
    import logging

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # the reader's machine has the fonts, this one need not
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for (name, counts), colour, hatch in zip(
            histogram.series.items(), _SERIES, _HATCHES, strict=False
        ):
            axes.stairs(
                counts, histogram.edges, fill=not hatch, color=colour, label=name,
                hatch=hatch or None, linewidth=1.4,
            )  # fmt: skip
        if len(histogram.series) > 1:
            axes.legend(frameon=False, labelcolor=_INK)
        axes.set_xlabel(histogram.unit, color=_INK)
        axes.set_ylabel(histogram.of, color=_INK)
        axes.tick_params(colors=_INK, length=3)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_LINE)
        if histogram.edges[0] < 0 < histogram.edges[-1]:
            axes.axvline(0, color=_INK, linewidth=0.8, linestyle=":")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(file.getvalue(), histogram.name)


def _inlined(text: str, name: str) -> str:
    """Without XML's preamble and metadata, with the page's colours, and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
