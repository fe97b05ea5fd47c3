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


class Diagnosis(Record):
    """All of it."""

    cache: str
    kind: Literal["paired", "unpaired"]
    rows: int
    measured: int = Field(description="Rows that shares, medians and correlations are of.")
    compared: int = Field(description="Rows whose responses were compared token by token.")
    verdict: str
    findings: list[Finding]
    suggestion: Suggestion
    histograms: list[Histogram]
    examples: list[Example]
