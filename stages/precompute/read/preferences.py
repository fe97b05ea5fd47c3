"""Raw rows -> preferences: one type for every input form.

A preference is a prompt and one or two responses, each either plain text or chat messages. The
input form is detected from the columns of the first rows. Each form has a reader (forms.py), which
reports exactly what is wrong with a row that does not fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read import fields
from reflogp.stages.precompute.read.forms import (
    DEFAULT_RULES,
    Parts,
    ReadParts,
    ReadRules,
    completion,
    explicit,
    implicit,
    labelled,
)
from reflogp.stages.precompute.read.messages import Content, is_empty, require_unicode
from reflogp.stages.precompute.read.one_message import TRAIN
from reflogp.stages.precompute.read.tables import TABLES, Table
from reflogp.stages.precompute.read.tools import (
    TEMPLATE_KWARGS,
    TOOLS,
    template_kwargs_of,
    tools_of,
)

_CONVERSATION = ("messages", "conversations", "conversation")
PROMPT_NAMES = ("question", "instruction", "query", "input", "context")
"""Common names of prompt columns. Messages suggest them, but no code assumes them."""
_SINGLE = {"prompt", "chosen", "rejected", "completion", "label", "system", "confidence", TOOLS,
           TEMPLATE_KWARGS}  # fmt: skip
STANDARD_NAMES = _SINGLE.union(_CONVERSATION, *fields.SCORES)
"""The standard column names, which --columns can give to other columns."""
FORMS_HELP = (
    "prompt+chosen+rejected, chosen+rejected (whole texts or conversations), "
    "messages/conversations+chosen+rejected, prompt+completion+label, messages+label, and "
    "the tables in docs/data.md, such as prompt+response_a+response_b+winner"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """One normalized row. An unpaired row has only `chosen` if its label is good, else `rejected`.

    `prompt`, `chosen` and `rejected` are either all text or all lists of messages with `role` and
    `content`. A response begins and ends with an assistant message. A prompt that ends with one is
    the beginning of the first answer.

    Attributes:
        rejected_prompt: the messages before the rejected response, if their other keys (ids,
            ratings, ...) differ from the prompt's. The chat template decides whether the rendered
            prompts differ too.
        bad_score: the fault of an unreadable score, if the row has one.
        tools: the JSON schemas of the tools that the prompt offers, for the chat template.
        template_kwargs: more arguments of the chat template for this row.
    """

    source_row: int
    prompt: Content
    chosen: Content | None
    rejected: Content | None
    confidence: float | None = None
    rejected_prompt: Content | None = None
    bad_score: RowFault | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Form:
    """A detected input form and the reader of its rows, or of the pairs of its table."""

    name: str
    paired: bool
    reader: ReadParts
    table: Table | None = None

    @property
    def columns(self) -> list[str]:
        """The standard names of its columns."""
        return self.name.split("+")


def detect(columns: set[str]) -> Form | None:
    """Return the input form of these columns, or None if they match no form."""
    conversation = next((name for name in _CONVERSATION if name in columns), None)
    if {"chosen", "rejected"} <= columns:
        if "prompt" in columns:
            return Form("prompt+chosen+rejected", True, partial(explicit, "prompt"))
        if conversation:
            return Form(f"{conversation}+chosen+rejected", True, partial(explicit, conversation))
        return Form("chosen+rejected", True, implicit)
    if "label" in columns:
        if {"prompt", "completion"} <= columns:
            return Form("prompt+completion+label", False, completion)
        if conversation:
            return Form(f"{conversation}+label", False, partial(labelled, conversation))
    for table in TABLES:
        if columns.issuperset(table.columns):
            reader = implicit if table.whole else partial(explicit, "prompt")
            return Form(table.name, True, reader, table)
    return None


def no_form(columns: set[str], where: str) -> InputError:
    """Return the error for columns that match no input form."""
    question = next((name for name in PROMPT_NAMES if name in columns), None)
    example = "prompt=question,chosen=good,rejected=bad"
    if question and detect(columns | {"prompt"}):
        example = f"prompt={question}"
    return InputError(
        f"{where}: the columns {', '.join(sorted(columns)) or '(none)'} match no input form. The "
        f"forms are {FORMS_HELP}. Map your columns with --columns, for example --columns {example}."
    )


def normalize(
    row: Mapping[str, Any], form: Form, source_row: int, rules: ReadRules = DEFAULT_RULES
) -> Preference:
    """Read `row`, whose columns have their standard names, as `form`.

    Raises:
        RowFault: the row cannot be used.
    """
    parts = form.reader(row, rules)
    if is_empty(parts.prompt):
        alone = "; chosen and rejected have only the response: name the prompt with --columns"
        why = f"the prompt is empty{alone * (form.name == 'chosen+rejected')}"
        raise RowFault(Reason.EMPTY_PROMPT, "prompt", why)
    for field, response in (("chosen", parts.chosen), ("rejected", parts.rejected)):
        if response is not None:
            column = next(name for name in (field, "completion", *_CONVERSATION) if name in row)
            _require_written(column, response)
    if parts.chosen == parts.rejected:
        raise RowFault(Reason.IDENTICAL_RESPONSES, "chosen", "chosen and rejected are the same")
    for field in ("prompt", "chosen", "rejected"):
        require_unicode(field, getattr(parts, field))
    score, bad_score = _score(row)
    return Preference(
        source_row, parts.prompt, parts.chosen, parts.rejected, score, parts.rejected_prompt,
        bad_score, **_for_template(row, parts),
    )  # fmt: skip


def _require_written(field: str, response: Content) -> None:
    """Check that a response has something that the policy writes and that is trained.

    Raises:
        RowFault: it has not.
    """
    if isinstance(response, list):
        response = [m for m in response if m["role"] == "assistant" and m.get(TRAIN, True)]
        if not response:
            why = "nothing is trained: its messages have the weight 0"
            raise RowFault(Reason.EMPTY_RESPONSE, field, f"in the response in {field!r} {why}")
    if is_empty(response):
        raise RowFault(Reason.EMPTY_RESPONSE, field, f"the response in {field!r} is empty")


def _for_template(row: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """Return what else the chat template gets.

    Raises:
        RowFault: it is invalid, or the row is plain text, which no template renders.
    """
    found = {"tools": tools_of(row), "template_kwargs": template_kwargs_of(row)}
    if isinstance(parts.prompt, str):
        for name, value in zip((TOOLS, TEMPLATE_KWARGS), found.values(), strict=True):
            if value is not None:
                raise RowFault(
                    Reason.UNSUPPORTED,
                    name,
                    f"the column {name!r} is for the chat template, which plain text does not "
                    f"pass through; give --as-chat, or --ignore {name} to use such rows without it",
                )
    return found


def _score(row: Mapping[str, Any]) -> tuple[float | None, RowFault | None]:
    """Return the confidence, or its fault, which matters only if --min-confidence is set."""
    try:
        return fields.confidence(row), None
    except RowFault as fault:
        return None, fault
