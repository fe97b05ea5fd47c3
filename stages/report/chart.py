"""A chart: what to draw, what it means, and its numbers as a table for those who cannot see it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reflogp.stages.report.gather import Floats


class Ink(NamedTuple):
    """Colours to draw with.

    Attributes:
        text: of axes and labels.
        line: of what should not catch the eye.
        series: of the data, in the order in which they are taken.
    """

    text: str
    line: str
    series: Sequence[str]


class Plotted(NamedTuple):
    """A curve of a chart, for the page to read values off.

    Attributes:
        name: as in the legend.
        colour: its number in Ink.series.
        steps: float64 [n], growing.
        values: float64 [n].
        least: float64 [n], of the steps that each value is the mean of.
        most: float64 [n], likewise.
    """

    name: str
    colour: int
    steps: Floats
    values: Floats
    least: Floats
    most: Floats


class Chart(NamedTuple):
    """One chart.

    Attributes:
        name: a plain word, for files and ids.
        title: above it.
        note: one sentence on how to read it.
        draw: draws it on matplotlib Axes with the given Ink.
        header: names of the columns of its table.
        rows: the table, numbers and names.
        height: of the drawing in inches; it is 5.6 wide.
        curves: what is plotted by step, if anything is.
    """

    name: str
    title: str
    note: str
    draw: Callable[[Any, Ink], None]
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    height: float = 3.1
    curves: Sequence[Plotted] = ()
