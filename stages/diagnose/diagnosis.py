"""What a diagnosis says: `reflogp diagnose --json` prints it, the terminal and the page show it."""

from typing import Literal

from pydantic import Field

from data_schemas.record import Record

Severity = Literal["problem", "warning", "fine", "note"]


class Finding(Record):
    """One thing that was looked at."""

    name: str
    severity: Severity
    title: str = Field(description="The main figure, in a sentence.")
    figures: dict[str, float | int | None] = Field(description="None: it cannot be computed here.")
    advice: str = Field("", description="What the figure means, and what to do.")
    commands: list[str] = Field(default_factory=list, description="Each does some of that.")


class Suggestion(Record):
    """How to train on these preferences, if one does."""

    loss: str
    beta: float
    reason: str
    command: str


class Histogram(Record):
    """Counts of one or two series over the same bins; the outermost hold what is beyond them."""

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
    """The rows with one value of a kept column. None: the rows are of the other kind."""

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
    """What the values of a kept column tell apart, over all rows; the most frequent first."""

    column: str
    groups: list[Group] | None = Field(description="None: it has too many different values.")


class Diagnosis(Record):
    """All of it."""

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
