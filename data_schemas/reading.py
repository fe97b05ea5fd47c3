"""What reading the preferences found: which columns mean what, what is worth knowing, and where.

It travels from the plan into the manifest, so that `reflogp inspect` tells it as the run did.
"""

import bisect
import enum
from collections.abc import Sequence
from pathlib import PurePath

from pydantic import Field

from reflogp.data_schemas.record import Count, Record

_MOST_PARTS = 1_000
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
UNKNOWN = 0
"""In place of a line that is not known."""


class Remark(enum.StrEnum):
    """What is worth knowing of rows that are used all the same. The value stands on disk."""

    TEMPLATE_DROPS = "template_drops"
    FIELDS_NOT_RENDERED = "fields_not_rendered"
    CONTROL_TOKENS = "control_tokens"
    DATED_TEMPLATE = "dated_template"
    TEXT_FOR_CHAT_MODEL = "text_for_chat_model"
    NO_END = "no_end"
    UNREADABLE_SCORE = "unreadable_score"


_MEANING = {
    Remark.TEMPLATE_DROPS: "the chat template leaves out a part of the messages",
    Remark.FIELDS_NOT_RENDERED: "the messages have fields that the chat template does not use",
    Remark.CONTROL_TOKENS: "the text holds names of special tokens, which become those tokens",
    Remark.DATED_TEMPLATE: "the chat template writes today's date, so that the same data give "
    "other tokens on another day",
    Remark.TEXT_FOR_CHAT_MODEL: "the prompt is text and is scored as it stands, although the "
    "tokenizer has a chat template",
    Remark.NO_END: "nothing ends the response: the tokenizer has no EOS token, and a policy "
    "that sees no end does not learn to stop",
    Remark.UNREADABLE_SCORE: "a score is not a number; the row has no confidence",
}


class Columns(Record):
    """What became of each column of the data."""

    used: dict[str, str] = Field(
        {}, description="By standard name, the column that was used; joined ones with a plus sign."
    )
    kept: list[str] = Field([], description="Kept in the cache by --keep.")
    left_out: list[str] = Field([], description="Left out by --ignore.")
    not_used: list[str] = Field([], description="All the others.")

    def __str__(self) -> str:
        """In a line."""
        used = [std if std == own else f"{std} (from {own})" for std, own in self.used.items()]
        parts = {"used": used, "kept": self.kept, "ignored": self.left_out,
                 "not used": self.not_used}  # fmt: skip
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


class Notice(Record):
    """One remark, with how many rows it is about and the first of them."""

    remark: Remark
    noticed: Count = Field(description="Rows it is about; those in quarantine do not count.")
    file: str = Field(description="Of the first of them.")
    line: int = Field(ge=0, description="Of the first of them; 0: not known.")
    detail: str = Field(description="What it is in the first of them.")

    def __str__(self) -> str:
        """In a line."""
        rows = f"{self.noticed:,} row{'s' * (self.noticed != 1)}"
        detail = f": {self.detail}" if self.detail else ""
        return f"{rows}: {_MEANING[self.remark]}; first: {place(self.file, self.line)}{detail}"


class Part(Record):
    """Rows of one file that stand in its lines at an even distance."""

    file: str
    first_row: int = Field(ge=0, description="Its first row's position over all files.")
    first_line: int = Field(ge=0, description="That row's line; 0: lines are not known.")
    step: int = Field(1, ge=0, description="Lines from one row to the next.")


class Reading(Record):
    """What reading the preferences found."""

    columns: Columns
    notices: list[Notice] = Field([], description="Each remark once.")
    parts: list[Part] = Field([], description="Which source rows came from which file and line.")


def place(file: str, line: int) -> str:
    """`a.jsonl, line 3`, or `a.csv, row 3`, or the file alone where the line is not known."""
    if line == UNKNOWN:
        return file
    return f"{file}, {numbered(file, line)}"


def numbered(file: str, line: int) -> str:
    """`line 3` of a file of lines, `row 3` of any other."""
    return f"{'line' if PurePath(file).name.lower().endswith(_LINES) else 'row'} {line}"


def locate(parts: Sequence[Part], source_row: int, otherwise: str = "") -> tuple[str, int]:
    """File and line of a source row; `otherwise` and 0 where that is not known."""
    found = bisect.bisect_right(parts, source_row, key=lambda part: part.first_row)
    if not found:
        return otherwise, UNKNOWN
    part = parts[found - 1]
    if part.first_line == UNKNOWN:
        return part.file, UNKNOWN
    line = part.first_line + part.step * (source_row - part.first_row)
    return part.file, line if line < 2**63 else UNKNOWN  # a manifest can come from a stranger


class Whereabouts:
    """Collects the parts of a source while it is read: a few numbers for millions of rows."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._part: Part | None = None
        self._rows = 0

    def add(self, row: int, file: str, line: int) -> None:
        """Note where the row `row` stands; rows come in order."""
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
