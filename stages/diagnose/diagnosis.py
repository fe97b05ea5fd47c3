"""The result of a diagnosis, which the terminal, the page and `--json` show, and its wording."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from reflogp.data_schemas.record import Record

Severity = Literal["problem", "warning", "fine", "note"]

LEGEND = (
    "longer: share of the pairs that differ in length whose chosen response is the longer one. "
    "preferred: share whose chosen response the reference prefers (the implicit accuracy before "
    "any training), by the sum of log-probs and per token. gap: its mean margin, in nats."
)
"""Explains the columns for pairs."""
_NONE = "(none)"
_LONGEST = 24  # characters of a value in a table


class Finding(Record):
    """The result of one check."""

    name: str
    severity: Severity
    title: str = Field(description="The main figure, in a sentence.")
    figures: dict[str, float | int | None] = Field(description="None: it cannot be computed here.")
    advice: str = Field("", description="What the figure means, and what to do.")
    commands: list[str] = Field(default_factory=list, description="Each does some of that.")


class Suggestion(Record):
    """Settings to start training with."""

    loss: str
    beta: float
    reason: str
    command: str


class Histogram(Record):
    """Counts of one or two series in the same bins; the outer bins hold all values beyond them."""

    name: str
    title: str
    unit: str = Field(description="Of the edges.")
    of: str = Field(description="What is counted.")
    edges: list[float]
    series: dict[str, list[int]]


class Example(Record):
    """A row worth looking at."""

    source_row: int = Field(description="0-based position in the data.")
    why: str
    prompt: str = Field("", description="Text, for the page only.")
    chosen: str = ""
    rejected: str = ""


class Group(Record):
    """The rows with one value of a kept column. None: does not apply to this kind of rows."""

    value: str | None = Field(description="None: of rows that have none.")
    rows: int
    share: float = Field(description="Of all rows.")
    share_good: float | None = Field(description="Of unpaired rows.")
    share_chosen_longer: float | None = Field(description="Of its pairs that differ in length.")
    accuracy_sum: float | None = Field(
        description="Share of its pairs whose chosen response the reference prefers: the implicit "
        "accuracy before any training."
    )
    accuracy_per_token: float | None = Field(description="The same by the mean of a token.")
    mean_reference_gap: float | None = Field(
        description="log pi_ref of chosen less that of rejected, in nats."
    )


class Grouped(Record):
    """All rows, grouped by the values of a kept column, the most frequent first."""

    column: str
    groups: list[Group] | None = Field(description="None: it has too many different values.")


class Diagnosis(Record):
    """A whole diagnosis."""

    cache: str
    kind: Literal["paired", "unpaired"]
    rows: int
    measured: int = Field(description="Rows that shares, medians and correlations are of.")
    compared: int = Field(description="Rows whose responses were compared token by token.")
    verdict: str
    findings: list[Finding]
    grouped: list[Grouped] = Field(description="One a column that the cache keeps.")
    suggestion: Suggestion
    histograms: list[Histogram]
    examples: list[Example]


Cells = dict[str, Callable[[Group], str]]


def group_table(grouped: Grouped, kind: str) -> list[tuple[str, ...]]:
    """The header, then a row for each value; only the header if there are too many values."""
    columns = _PAIRED if kind == "paired" else _UNPAIRED
    groups = grouped.groups or []
    rows = [(_name(group), *(form(group) for form in columns.values())) for group in groups]
    return [(grouped.column, *columns), *rows]


def _name(group: Group) -> str:
    value = _NONE if group.value is None else group.value
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


_COUNTS: Cells = {
    "rows": lambda group: f"{group.rows:,}",
    "share": lambda group: _share(group.share),
}
_PAIRED: Cells = {
    **_COUNTS,
    "longer": lambda group: _share(group.share_chosen_longer),
    "preferred": lambda group: _share(group.accuracy_sum),
    "per token": lambda group: _share(group.accuracy_per_token),
    "gap": lambda group: f"{group.mean_reference_gap or 0:+.1f}",
}
_UNPAIRED: Cells = {**_COUNTS, "good": lambda group: _share(group.share_good)}


def grade(value: float, warning: float, problem: float) -> Severity:
    """The severity of a value, given the least value of a warning and of a problem."""
    return "problem" if value >= problem else "warning" if value >= warning else "fine"


def signed(value: float | None) -> str:
    """A correlation as text."""
    return "none" if value is None else f"{value:+.2f}"


def counted(number: int, one: str, many: str) -> str:
    """A count with its noun: `1 row`, `2 rows`."""
    return f"{number:,} {one if number == 1 else many}"
