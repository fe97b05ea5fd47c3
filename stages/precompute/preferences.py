"""Raw rows -> preferences: one shape for every input form.

A preference is a prompt and one or two responses, each either raw text or chat messages. The form
is detected from the columns of the first rows that have a known one; the reader of each form says
exactly what is wrong with a row that does not fit.

The prompt of a pair must be one and the same: DPO compares two responses to one question. Where two
conversations differ before their last turn, the row is set aside; TRL would take everything after
the common beginning as the response, later questions of the user included.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_schemas.errors import InputError
from data_schemas.quarantine import Reason
from stages.precompute import fields
from stages.precompute.faults import RowFault
from stages.precompute.fields import Content, Message

_CONVERSATION = ("messages", "conversations", "conversation")
_TURN, _USER_TURN = "\n\nAssistant:", "\n\nHuman:"
COLUMNS = {"prompt", "chosen", "rejected", "completion", "label", "system", "confidence"}.union(
    _CONVERSATION, *fields.SCORES
)
"""The names that mean something here, and that --columns can give to other columns."""
FORMS_HELP = (
    "prompt+chosen+rejected, chosen+rejected (whole texts or conversations), "
    "messages/conversations+chosen+rejected, prompt+completion+label, messages+label"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """One normalized row. Unpaired, it has only `chosen` if its label is good, else `rejected`.

    All of `prompt`, `chosen` and `rejected` are text, or all are lists of messages with `role` and
    `content`; each response is one assistant turn.
    """

    source_row: int
    prompt: Content
    chosen: Content | None
    rejected: Content | None
    confidence: float | None = None


Reader = Callable[[Mapping[str, Any]], tuple[Content, Content | None, Content | None]]


@dataclass(frozen=True)
class Form:
    """A detected input form and how its rows are read."""

    name: str
    paired: bool
    reader: Reader


def detect(columns: set[str]) -> Form | None:
    """The input form that these columns make, or None where they make no known one."""
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
    """The error for columns that make no form."""
    return InputError(
        f"{where}: the columns {', '.join(sorted(columns)) or '(none)'} make no known input form. "
        f"Known: {FORMS_HELP}. Name yours with --columns, for example "
        "--columns prompt=question,chosen=good,rejected=bad."
    )


def normalize(row: Mapping[str, Any], form: Form, source_row: int) -> Preference:
    """Read `row`, whose columns already have their standard names, as `form`.

    Raises:
        RowFault: the row cannot be used.
    """
    prompt, chosen, rejected = form.reader(row)
    if not fields.text(prompt).strip():
        raise RowFault(Reason.EMPTY_PROMPT, "prompt", "the prompt is empty")
    for field, response in (("chosen", chosen), ("rejected", rejected)):
        if response is not None and not fields.text(response).strip():
            column = next(name for name in (field, "completion", *_CONVERSATION) if name in row)
            raise RowFault(Reason.EMPTY_RESPONSE, column, f"the response in {column!r} is empty")
    if chosen == rejected:
        raise RowFault(Reason.IDENTICAL_RESPONSES, "chosen", "chosen and rejected are the same")
    for field, content in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        fields.require_unicode(field, content)
    return Preference(source_row, prompt, chosen, rejected, fields.confidence(row))


def _explicit(row: Mapping[str, Any], prompt_field: str) -> tuple[Content, Content, Content]:
    prompt = fields.content(row, prompt_field)
    chosen, rejected = fields.content(row, "chosen"), fields.content(row, "rejected")
    if all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        return prompt, chosen, rejected
    messages = _with_system(row, _as_messages(prompt, "user"))
    return (
        messages,
        _one_turn("chosen", _after_prompt(messages, _as_messages(chosen, "assistant"))),
        _one_turn("rejected", _after_prompt(messages, _as_messages(rejected, "assistant"))),
    )


def _implicit(row: Mapping[str, Any]) -> tuple[Content, Content, Content]:
    chosen, rejected = fields.content(row, "chosen"), fields.content(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowFault(
            Reason.WRONG_TYPE, "chosen", "one of chosen and rejected is text, the other messages"
        )
    if chosen[:-1] != rejected[:-1]:
        raise RowFault(
            Reason.PROMPTS_DIFFER, "chosen", "the two conversations differ before their last turn"
        )
    return (
        _with_system(row, chosen[:-1]),
        _one_turn("chosen", chosen[-1:]),
        _one_turn("rejected", rejected[-1:]),
    )


def _completion(row: Mapping[str, Any]) -> tuple[Content, Content | None, Content | None]:
    prompt, completion = fields.content(row, "prompt"), fields.content(row, "completion")
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        prompt = _with_system(row, _as_messages(prompt, "user"))
        answer = _after_prompt(prompt, _as_messages(completion, "assistant"))
        completion = _one_turn("completion", answer)
    return (prompt, completion, None) if fields.label(row) else (prompt, None, completion)


def _labelled(row: Mapping[str, Any], field: str) -> tuple[Content, Content | None, Content | None]:
    messages = fields.content(row, field)
    if isinstance(messages, str):
        raise RowFault(Reason.WRONG_TYPE, field, f"{field!r} is text, not messages")
    prompt = _with_system(row, messages[:-1])
    response = _one_turn(field, messages[-1:])
    return (prompt, response, None) if fields.label(row) else (prompt, None, response)


def _as_messages(content: Content, role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """ShareGPT data keeps the system message in a column of its own."""
    system = row.get("system")
    if isinstance(system, str) and system and not any(m["role"] == "system" for m in messages):
        return [{"role": "system", "content": system}, *messages]
    return messages


def _after_prompt(prompt: list[Message], response: list[Message]) -> list[Message]:
    """A response that is a whole conversation, less the prompt it begins with."""
    for beginning in (prompt, [m for m in prompt if m["role"] != "system"]):
        if beginning and response[: len(beginning)] == beginning:
            return response[len(beginning) :]
    return response


def _one_turn(field: str, messages: list[Message]) -> list[Message]:
    if not messages:
        raise RowFault(Reason.EMPTY_RESPONSE, field, f"{field!r} holds no response")
    roles = [message["role"] for message in messages]
    if roles != ["assistant"]:
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"the response in {field!r} must be one assistant message after the prompt, but its "
            f"roles are {', '.join(roles[:5])}",
        )
    return messages


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two whole texts into prompt, chosen and rejected.

    The prompt of transcripts is all up to the last assistant turn; that of other texts their common
    beginning, up to the end of a word, so that a tokenizer sees whole words in both responses.
    """
    if _TURN in chosen and _TURN in rejected:
        cut = chosen.rindex(_TURN) + len(_TURN)
        if chosen[:cut] != rejected[: rejected.rindex(_TURN) + len(_TURN)]:
            raise RowFault(
                Reason.PROMPTS_DIFFER, "chosen", "the two dialogues differ before their last turn"
            )
        for field, response in (("chosen", chosen[cut:]), ("rejected", rejected[cut:])):
            if _USER_TURN in response:
                raise RowFault(
                    Reason.BAD_MESSAGES, field, f"the dialogue in {field!r} ends in a user's turn"
                )
    else:
        common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of texts, not paths
        word = re.search(r"\S(?=\s+\S*\Z)", common)
        if word is None:
            raise RowFault(
                Reason.EMPTY_PROMPT,
                "chosen",
                "there is no prompt: chosen and rejected do not begin with the same words",
            )
        cut = word.end()
    return chosen[:cut], chosen[cut:], rejected[cut:]
