"""A chart: how to draw it, what it means, and its numbers as an accessible table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reflogp.stages.report.gather import Floats


class Ink(NamedTuple):
    """The colours of a chart.

    Attributes:
        text: colour of axes and labels.
        line: colour of unobtrusive lines, such as the grid.
        series: colours of the data series, in order.
    """

    text: str
    line: str
    series: Sequence[str]


class Plotted(NamedTuple):
    """A curve whose values the page shows under the pointer.

    Attributes:
        name: its name in the legend.
        colour: its index in Ink.series.
        steps: float64 [n], ascending.
        values: float64 [n], each the mean of one or more steps.
        least: float64 [n], the smallest value among those steps.
        most: float64 [n], the largest value among those steps.
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
        name: a plain word, for file names and ids.
        title: the title above the chart.
        note: one sentence on how to read the chart.
        draw: draws the chart on matplotlib Axes in the given Ink.
        header: column names of its table.
        rows: rows of its table, numbers and names.
        height: height of the drawing in inches; the width is 5.6.
        curves: its curves over steps, if it has any.
    """

    name: str
    title: str
    note: str
    draw: Callable[[Any, Ink], None]
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    height: float = 3.1
    curves: Sequence[Plotted] = ()
