"""Remarks on rows that are used although something about their text is notable."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reflogp.data_schemas.reading import Notice, Part, Remark, locate
from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.one_message import REASONING, TRAIN
from reflogp.stages.precompute.tokens.chat_template import ChatTemplate
from reflogp.stages.precompute.tokens.tool_calls import words_of

Remarks = dict[Remark, str]
_KNOWN = {"role", "content", "tool_calls", TRAIN, *REASONING}


def dropped(template: ChatTemplate, messages: list[Message], whole: str) -> Remarks:
    """Return a remark on the first part of `messages` that the text `whole` lacks."""
    for message in messages:
        if lost := _lost(template, message, whole):
            return {Remark.TEMPLATE_DROPS: lost}
    return {}


def is_left_out(template: ChatTemplate, message: Message, whole: str) -> bool:
    """Whether a message without content has something, of which the text `whole` has nothing."""
    calls = message.get("tool_calls")
    return (
        not message["content"].strip()
        and bool(_lost(template, message, whole))
        and not (calls and any(_has_calls(template, [call], whole) for call in calls))
    )


def unused(
    template: ChatTemplate, messages: list[Message], arguments: Mapping[str, Any]
) -> Remarks:
    """Return a remark on the fields and arguments that the template's source never names."""
    fields = {name for message in messages for name in message} - _KNOWN
    found = sorted(name for name in {*fields, *arguments} if not template.names(name))
    return {Remark.FIELDS_NOT_RENDERED: ", ".join(found)} if found else {}


class Notices:
    """Count the rows of each remark, and remember the first."""

    def __init__(self) -> None:
        self._counts: dict[Remark, int] = {}
        self._first: dict[Remark, tuple[int, str]] = {}

    def add(self, remark: Remark, source_row: int, detail: str = "") -> None:
        """Count one row."""
        self._counts[remark] = self._counts.get(remark, 0) + 1
        self._first.setdefault(remark, (source_row, detail))

    def records(self, parts: Sequence[Part]) -> list[Notice]:
        """Return the notices, with the file and line of each first row."""
        found = []
        for remark, count in self._counts.items():
            row, detail = self._first[remark]
            file, line = locate(parts, row)
            detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
            found.append(Notice(remark=remark, noticed=count, file=file, line=line, detail=detail))
        return found


def _lost(template: ChatTemplate, message: Message, whole: str) -> str:
    """Describe the first part of a message that the text lacks; empty if it lacks none."""
    role = message["role"]
    if message["content"].strip() not in whole:
        return f"the content of the {role} message, or a part of it"
    for name in REASONING:
        said = message.get(name)
        if said and (not template.names(name) or str(said).strip() not in whole):
            return f"{name} of the {role} message"
    calls = message.get("tool_calls")
    if calls and not _has_calls(template, calls, whole):
        return f"tool_calls of the {role} message"
    return ""


def _has_calls(template: ChatTemplate, calls: Any, whole: str) -> bool:
    words = (any(w in whole for w in (word, *_escaped(word))) for word in words_of(calls))
    return template.names("tool_calls") and all(words)


def _escaped(said: str) -> tuple[str, str]:
    """Return a text as it is escaped inside JSON, and inside the single quotes of Python."""
    inner = json.dumps(said, ensure_ascii=False)[1:-1]
    return inner, inner.replace('\\"', '"').replace("'", "\\'")
