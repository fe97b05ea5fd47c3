"""A field of a raw row -> text, or messages with standard `role` and `content` keys.

Messages can be a list, a single object, an object of lists, or text that contains one of these:
JSON, or a Python literal as in tables saved by pandas.
"""

import re
from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.fields import listed, parsed, present
from reflogp.stages.precompute.read.one_message import CONTENT, REASONING, ROLE, read_message

Message = dict[str, Any]
Content = str | list[Message]

# The beginning of a text that contains only messages.
_BEGINS = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])(?:role|from|content|value)\1\s*:""")


def content(row: Mapping[str, Any], name: str) -> Content:
    """Return the field `name` of `row` as text or as messages.

    Raises:
        RowFault: the field is missing, null or of another type, or one of its messages is invalid.
    """
    value = present(row, name)
    if isinstance(value, str):
        found = _messages_in(name, value)
        if found is None:
            return value
        value = found
    value = listed(value)
    if not isinstance(value, list):
        kind = type(value).__name__
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is {kind}, not text or messages")
    try:
        return [read_message(name, position, message) for position, message in enumerate(value)]
    except RecursionError as error:
        raise RowFault(Reason.BAD_MESSAGES, name, f"{name!r} is nested too deeply") from error


def text(content: Content) -> str:
    """Return the text of `content`: all its messages joined."""
    return content if isinstance(content, str) else "".join(m["content"] for m in content)


def is_empty(content: Content) -> bool:
    """Whether `content` has no text and no tool call."""
    calls = not isinstance(content, str) and any(m.get("tool_calls") for m in content)
    return not calls and not text(content).strip()


def looks_like_messages(value: Any) -> bool:
    """Whether a field contains messages, as a list, an object or text."""
    if isinstance(value, str):
        return _BEGINS.match(value) is not None
    turns = listed(value)
    return isinstance(turns, list) and bool(turns) and all(map(_is_turn, turns))


def common_turns(left: list[Message], right: list[Message]) -> int:
    """Return how many messages two conversations begin with that a template renders alike.

    Ids, ratings and the like make no difference.
    """
    pairs = enumerate(zip(left, right, strict=False))
    other = (at for at, (one, two) in pairs if _turn(one) != _turn(two))
    return next(other, min(len(left), len(right)))


def same_turns(left: list[Message], right: list[Message]) -> bool:
    """Whether a template renders two conversations alike."""
    return len(left) == len(right) == common_turns(left, right)


def require_unicode(field: str, content: Content | None) -> None:
    """Check that `content` is valid Unicode: a JSON escape can encode half a surrogate pair.

    Raises:
        RowFault: the text has half a surrogate pair, which tokenizers reject.
    """
    try:
        text(content or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            Reason.INVALID_UTF8, field, f"{field!r} has half a surrogate pair: {error.reason}"
        ) from error


def _messages_in(field: str, value: str) -> Any:
    """Parse the messages in a text; None if it is plain text."""
    if _BEGINS.match(value) is None:
        return None
    try:
        found = parsed(value)
    except ValueError as error:
        if not value.rstrip().endswith(("]", "}")):
            return None
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"{field!r} is text that looks like messages, but is {error}",
        ) from error
    turns = listed(found)
    return turns if isinstance(turns, list) and all(map(_is_turn, turns)) else None


def _is_turn(message: Any) -> bool:
    return isinstance(message, Mapping) and any(
        isinstance(message.get(role), str) and (said in message or "tool_calls" in message)
        for role, said in zip(ROLE, CONTENT, strict=True)
    )


def _turn(message: Message) -> tuple[Any, ...]:
    calls = message.get("tool_calls")
    if calls is not None:  # a call's id does not count, only its function
        calls = [call.get("function", call) for call in calls]
    return message["role"], message["content"], calls, *map(message.get, REASONING)
