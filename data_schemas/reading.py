"""What reading the preferences found: the use of each column, notices, and where rows came from.

The plan carries it into the manifest, so `reflogp inspect` can repeat what the run reported.
"""

import bisect
import enum
from collections.abc import Sequence
from pathlib import PurePath

from pydantic import Field

from reflogp.data_schemas.record import Count, Record

_MOST_PARTS = 1_000
_LINES = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst"))
UNKNOWN = 0
"""Stands for an unknown line."""


class Remark(enum.StrEnum):
    """Something notable about rows that are used anyway. The value appears on disk."""

    TEMPLATE_DROPS = "template_drops"
    FIELDS_NOT_RENDERED = "fields_not_rendered"
    TEMPLATE_DIVERGED = "template_diverged"
    CONTROL_TOKENS = "control_tokens"
    DATED_TEMPLATE = "dated_template"
    TEXT_FOR_CHAT_MODEL = "text_for_chat_model"
    NO_END = "no_end"
    UNREADABLE_SCORE = "unreadable_score"


_MEANING = {
    Remark.TEMPLATE_DROPS: "the chat template leaves out a part of the messages",
    Remark.FIELDS_NOT_RENDERED: "the rows have fields that the chat template does not use",
    Remark.TEMPLATE_DIVERGED: "the chat template renders the prompt differently once a response "
    "follows, so the prompt ends where the two begin to differ",
    Remark.CONTROL_TOKENS: "the text contains names of special tokens, which become those tokens",
    Remark.DATED_TEMPLATE: "the chat template writes today's date, so the same data give "
    "different tokens on another day",
    Remark.TEXT_FOR_CHAT_MODEL: "the prompt is plain text and is scored unchanged, although the "
    "tokenizer has a chat template; --as-chat applies it",
    Remark.NO_END: "no token ends the response, because the tokenizer has no EOS token; the "
    "policy does not learn to stop",
    Remark.UNREADABLE_SCORE: "a score is not a number; the row has no confidence",
}


class Columns(Record):
    """How each column of the data was used."""

    used: dict[str, str] = Field(
        {}, description="Source column by standard name; a plus sign joins several columns."
    )
    kept: list[str] = Field([], description="Columns kept in the cache by --keep.")
    left_out: list[str] = Field([], description="Columns left out by --ignore.")
    not_used: list[str] = Field([], description="All other columns.")

    def __str__(self) -> str:
        """One line for people."""
        used = [std if std == own else f"{std} (from {own})" for std, own in self.used.items()]
        parts = {"used": used, "kept": self.kept, "ignored": self.left_out,
                 "not used": self.not_used}  # fmt: skip
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


class Notice(Record):
    """A remark, the number of rows that it applies to, and the first of those rows."""

    remark: Remark
    noticed: Count = Field(description="Rows that it applies to, quarantined ones excluded.")
    file: str = Field(description="File of the first such row.")
    line: int = Field(ge=0, description="Line of the first such row; 0 if unknown.")
    detail: str = Field(description="Details of the first such row.")

    def __str__(self) -> str:
        """One line for people."""
        rows = f"{self.noticed:,} row{'s' * (self.noticed != 1)}"
        detail = f": {self.detail}" if self.detail else ""
        return f"{rows}: {_MEANING[self.remark]}; first: {place(self.file, self.line)}{detail}"


class Part(Record):
    """A run of rows that are evenly spaced over the lines of one file."""

    file: str
    first_row: int = Field(ge=0, description="Position of the first row over all files.")
    first_line: int = Field(ge=0, description="Line of the first row; 0 if lines are unknown.")
    step: int = Field(1, ge=0, description="Lines from one row to the next.")


class Reading(Record):
    """What reading the preferences found."""

    columns: Columns
    notices: list[Notice] = Field([], description="At most one notice per remark.")
    parts: list[Part] = Field([], description="The file and line that each source row came from.")


def place(file: str, line: int) -> str:
    """Return `a.jsonl, line 3` or `a.csv, row 3`, or only the file if the line is unknown."""
    if line == UNKNOWN:
        return file
    return f"{file}, {numbered(file, line)}"


def numbered(file: str, line: int) -> str:
    """Return `line 3` for a JSONL file and `row 3` for any other."""
    return f"{'line' if PurePath(file).name.lower().endswith(_LINES) else 'row'} {line}"


def locate(parts: Sequence[Part], source_row: int, otherwise: str = "") -> tuple[str, int]:
    """Return the file and line of a source row, or `otherwise` and 0 if they are unknown."""
    found = bisect.bisect_right(parts, source_row, key=lambda part: part.first_row)
    if not found:
        return otherwise, UNKNOWN
    part = parts[found - 1]
    if part.first_line == UNKNOWN:
        return part.file, UNKNOWN
    line = part.first_line + part.step * (source_row - part.first_row)
    return part.file, line if line < 2**63 else UNKNOWN  # manifests can be untrusted


class Whereabouts:
    """Collect the parts of a source while it is read: a few numbers for millions of rows."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._part: Part | None = None
        self._rows = 0

    def add(self, row: int, file: str, line: int) -> None:
        """Record the file and line of `row`. Rows must come in order."""
        part = self._part
        if part is not None and part.file == file:
            if part.first_line == UNKNOWN or (
                line == part.first_line + part.step * (row - part.first_row)
            ):
                self._rows += 1
                return
            step, rest = divmod(line - part.first_line, row - part.first_row)
            if self._rows == 1 and not rest:  # the second row of a part sets its step
                self._part = self.parts[-1] = part.model_copy(update={"step": step})
                self._rows += 1
                return
        known = len(self.parts) < _MOST_PARTS
        self._part = Part(file=file, first_row=row, first_line=line if known else UNKNOWN)
        self.parts.append(self._part)
        self._rows = 1
