"""Raw rows -> preferences: one type for every input form.

A preference is a prompt and one or two responses, each either plain text or chat messages. The
input form is detected from the columns of the first rows. Each form has a reader, which reports
exactly what is wrong with a row that does not fit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read import fields
from reflogp.stages.precompute.read.labels import is_good
from reflogp.stages.precompute.read.messages import (
    Content,
    Message,
    content,
    is_empty,
    require_unicode,
    same_turns,
)
from reflogp.stages.precompute.read.whole_texts import split_texts

_CONVERSATION = ("messages", "conversations", "conversation")
PROMPT_NAMES = ("question", "instruction", "query", "input", "context")
"""Common names of prompt columns. Messages suggest them, but no code assumes them."""
_SINGLE = {"prompt", "chosen", "rejected", "completion", "label", "system", "confidence"}
STANDARD_NAMES = _SINGLE.union(_CONVERSATION, *fields.SCORES)
"""The standard column names, which --columns can give to other columns."""
FORMS_HELP = (
    "prompt+chosen+rejected, chosen+rejected (whole texts or conversations), "
    "messages/conversations+chosen+rejected, prompt+completion+label, messages+label"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """One normalized row. An unpaired row has only `chosen` if its label is good, else `rejected`.

    `prompt`, `chosen` and `rejected` are either all text or all lists of messages with `role` and
    `content`. Each response is one assistant turn.

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


class _Parts(NamedTuple):
    """The contents of a Preference."""

    prompt: Content
    chosen: Content | None
    rejected: Content | None
    rejected_prompt: Content | None = None


ReadParts = Callable[[Mapping[str, Any]], _Parts]


@dataclass(frozen=True)
class Form:
    """A detected input form and the reader of its rows."""

    name: str
    paired: bool
    reader: ReadParts

    @property
    def columns(self) -> list[str]:
        """The standard names of its columns."""
        return self.name.split("+")


def detect(columns: set[str]) -> Form | None:
    """Return the input form of these columns, or None if they match no form."""
    conversation = next((name for name in _CONVERSATION if name in columns), None)
    if {"chosen", "rejected"} <= columns:
        if "prompt" in columns:
            return Form("prompt+chosen+rejected", True, lambda row: _explicit(row, "prompt"))
        if conversation:
            return Form(
                f"{conversation}+chosen+rejected", True, lambda row: _explicit(row, conversation)
            )
        return Form("chosen+rejected", True, _implicit)
    if "label" in columns:
        if {"prompt", "completion"} <= columns:
            return Form("prompt+completion+label", False, _completion)
        if conversation:
            return Form(f"{conversation}+label", False, lambda row: _labelled(row, conversation))
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


def normalize(row: Mapping[str, Any], form: Form, source_row: int) -> Preference:
    """Read `row`, whose columns have their standard names, as `form`.

    Raises:
        RowFault: the row cannot be used.
    """
    parts = form.reader(row)
    if is_empty(parts.prompt):
        alone = "; chosen and rejected have only the response: name the prompt with --columns"
        why = f"the prompt is empty{alone * (form.name == 'chosen+rejected')}"
        raise RowFault(Reason.EMPTY_PROMPT, "prompt", why)
    for field, response in (("chosen", parts.chosen), ("rejected", parts.rejected)):
        if response is not None and is_empty(response):
            column = next(name for name in (field, "completion", *_CONVERSATION) if name in row)
            raise RowFault(Reason.EMPTY_RESPONSE, column, f"the response in {column!r} is empty")
    if parts.chosen == parts.rejected:
        raise RowFault(Reason.IDENTICAL_RESPONSES, "chosen", "chosen and rejected are the same")
    for field in ("prompt", "chosen", "rejected"):
        require_unicode(field, getattr(parts, field))
    score, bad_score = _score(row)
    return Preference(
        source_row, parts.prompt, parts.chosen, parts.rejected, score, parts.rejected_prompt,
        bad_score,
    )  # fmt: skip


def _score(row: Mapping[str, Any]) -> tuple[float | None, RowFault | None]:
    """Return the confidence, or its fault, which matters only if --min-confidence is set."""
    try:
        return fields.confidence(row), None
    except RowFault as fault:
        return None, fault


def _explicit(row: Mapping[str, Any], prompt_field: str) -> _Parts:
    prompt = content(row, prompt_field)
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    if all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        return _Parts(prompt, chosen, rejected)
    messages = _with_system(row, _as_messages(prompt, "user"))
    return _Parts(
        messages,
        _one_turn("chosen", _after_prompt(messages, _as_messages(chosen, "assistant"))),
        _one_turn("rejected", _after_prompt(messages, _as_messages(rejected, "assistant"))),
    )


def _implicit(row: Mapping[str, Any]) -> _Parts:
    """Read two whole texts or conversations, each of which begins with the prompt.

    DPO compares two responses to the same prompt, so conversations that differ before their last
    turn are a fault. TRL would treat everything after their common beginning as the response,
    including later questions of the user.
    """
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _Parts(*split_texts(chosen, rejected))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowFault(
            Reason.WRONG_TYPE, "chosen", "one of chosen and rejected is text, the other messages"
        )
    if not same_turns(chosen[:-1], rejected[:-1]):
        raise RowFault(
            Reason.PROMPTS_DIFFER, "chosen", "the two conversations differ before their last turn"
        )
    other = None if chosen[:-1] == rejected[:-1] else _with_system(row, rejected[:-1])
    return _Parts(
        _with_system(row, chosen[:-1]),
        _one_turn("chosen", chosen[-1:]),
        _one_turn("rejected", rejected[-1:]),
        other,
    )


def _completion(row: Mapping[str, Any]) -> _Parts:
    prompt, completion = content(row, "prompt"), content(row, "completion")
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        prompt = _with_system(row, _as_messages(prompt, "user"))
        answer = _after_prompt(prompt, _as_messages(completion, "assistant"))
        completion = _one_turn("completion", answer)
    return _Parts(prompt, completion, None) if is_good(row) else _Parts(prompt, None, completion)


def _labelled(row: Mapping[str, Any], field: str) -> _Parts:
    messages = content(row, field)
    if isinstance(messages, str):
        raise RowFault(Reason.WRONG_TYPE, field, f"{field!r} is text, not messages")
    prompt, response = _with_system(row, messages[:-1]), _one_turn(field, messages[-1:])
    return _Parts(prompt, response, None) if is_good(row) else _Parts(prompt, None, response)


def _as_messages(content: Content, role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Put the text of the column `system` before `messages`; ShareGPT data have such a column."""
    system = row.get("system")
    if system is None or (isinstance(system, float) and math.isnan(system)):  # an empty CSV cell
        return messages
    if not isinstance(system, str):
        raise RowFault(Reason.WRONG_TYPE, "system", "'system' is not text")
    own = [m["content"] for m in messages if m["role"] == "system"]
    if not system.strip() or system.strip() in map(str.strip, own):
        return messages
    if own:
        raise RowFault(
            Reason.BAD_MESSAGES,
            "system",
            "the column 'system' and the system message differ; --ignore system uses the message",
        )
    return [{"role": "system", "content": system}, *messages]


def _after_prompt(prompt: list[Message], response: list[Message]) -> list[Message]:
    """Return a response without the prompt, if it repeats the prompt at its beginning."""
    for beginning in (prompt, [m for m in prompt if m["role"] != "system"]):
        if beginning and same_turns(response[: len(beginning)], beginning):
            return response[len(beginning) :]
    return response


def _one_turn(field: str, messages: list[Message]) -> list[Message]:
    if not messages:
        raise RowFault(Reason.EMPTY_RESPONSE, field, f"{field!r} has no response")
    roles = [message["role"] for message in messages]
    if roles != ["assistant"]:
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"the response in {field!r} must be one assistant message after the prompt, but its "
            f"roles are {', '.join(roles[:5])}",
        )
    return messages
