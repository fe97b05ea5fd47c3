"""One reader per input form: a raw row -> its prompt and its responses."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.conversations import (
    Divided,
    answered,
    beside_prompt,
    divided,
    last_answer,
)
from reflogp.stages.precompute.read.labels import is_good
from reflogp.stages.precompute.read.messages import Content, Message, content
from reflogp.stages.precompute.read.whole_texts import as_chat, as_conversations, split_texts


class Parts(NamedTuple):
    """The contents of a Preference."""

    prompt: Content
    chosen: Content | None
    rejected: Content | None
    rejected_prompt: Content | None = None


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How rows are read.

    Attributes:
        whole: a response is everything after the common beginning of two conversations, with the
            user's further turns as context; else it is one turn of the assistant.
        as_chat: plain texts are read as messages.
    """

    whole: bool = False
    as_chat: bool = False


DEFAULT_RULES = ReadRules()
ReadParts = Callable[[Mapping[str, Any], ReadRules], Parts]


def explicit(prompt_field: str, row: Mapping[str, Any], rules: ReadRules) -> Parts:
    """Read a prompt with two responses, which can repeat it."""
    prompt = content(row, prompt_field)
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    if rules.as_chat:
        prompt, chosen, rejected = as_chat(prompt, chosen, rejected)
    if all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        return Parts(prompt, chosen, rejected)
    messages = _as_messages(prompt, "user")
    sides = {
        "chosen": _as_messages(chosen, "assistant"),
        "rejected": _as_messages(rejected, "assistant"),
    }
    if talks := beside_prompt(messages, *sides.values(), whole=rules.whole):
        return _conversations(row, talks)
    messages, responses = answered(_with_system(row, messages), sides, whole=rules.whole)
    return Parts(messages, *responses)


def implicit(row: Mapping[str, Any], rules: ReadRules) -> Parts:
    """Read two whole texts or conversations, each of which begins with the prompt."""
    chosen, rejected = content(row, "chosen"), content(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not rules.as_chat:
            return Parts(*split_texts(chosen, rejected))
        chosen, rejected = as_conversations(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowFault(
            Reason.WRONG_TYPE, "chosen", "one of chosen and rejected is text, the other messages"
        )
    return _conversations(row, divided(chosen, rejected, whole=rules.whole))


def completion(row: Mapping[str, Any], rules: ReadRules) -> Parts:
    """Read a prompt with one response and its label."""
    prompt, response = content(row, "prompt"), content(row, "completion")
    if rules.as_chat:
        prompt, response = as_chat(prompt, response)
    if not (isinstance(prompt, str) and isinstance(response, str)):
        prompt = _with_system(row, _as_messages(prompt, "user"))
        sides = {"completion": _as_messages(response, "assistant")}
        prompt, (response,) = answered(prompt, sides, whole=rules.whole)
    return _judged(row, prompt, response)


def labelled(field: str, row: Mapping[str, Any], rules: ReadRules) -> Parts:
    """Read a conversation with the label of its last answer."""
    messages = content(row, field)
    if isinstance(messages, str):
        raise RowFault(Reason.WRONG_TYPE, field, f"{field!r} is text, not messages")
    prompt, response = last_answer(field, messages, whole=rules.whole)
    return _judged(row, _with_system(row, prompt), response)


def _judged(row: Mapping[str, Any], prompt: Content, response: Content) -> Parts:
    """Return an unpaired response as chosen or as rejected, by its label."""
    return Parts(prompt, response, None) if is_good(row) else Parts(prompt, None, response)


def _as_messages(content: Content, role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _conversations(row: Mapping[str, Any], found: Divided) -> Parts:
    other = found.rejected_prompt
    return Parts(
        _with_system(row, found.prompt),
        found.chosen,
        found.rejected,
        other and _with_system(row, other),
    )


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
