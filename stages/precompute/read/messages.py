"""A field of a raw row -> text, or messages with standard `role` and `content` keys.

Messages can be a list, a single object, or text that contains either: JSON, or a Python literal as
in tables saved by pandas. Role names are standardized. A null inside a message counts as a missing
key, because Arrow gives every object of a column the keys of all the others.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.fields import present

Message = dict[str, Any]
Content = str | list[Message]

_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "chatbot": "assistant", "model": "assistant", "ai": "assistant",
    "observation": "tool", "function": "tool",
}  # fmt: skip
_STANDARD = {"system", "user", "assistant", "tool"}
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
# The beginning of a text that contains only messages.
_BEGINS = re.compile(r"""\s*(?:\[\s*)?\{\s*(['"])(?:role|from|content|value)\1\s*:""")
_LONGEST_LITERAL = 1 << 20  # characters; Python's parser takes a hundred bytes per character


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
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        kind = type(value).__name__
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is {kind}, not text or messages")
    try:
        return [_message(name, position, message) for position, message in enumerate(value)]
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
    turns = [value] if isinstance(value, Mapping) else value
    return isinstance(turns, list) and bool(turns) and all(map(_is_turn, turns))


def same_turns(left: list[Message], right: list[Message]) -> bool:
    """Whether two conversations have the same content, ignoring ids, ratings and the like."""
    return list(map(_turn, left)) == list(map(_turn, right))


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
    for parse in (json.loads, _literal):
        try:
            found = parse(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        turns = [found] if isinstance(found, Mapping) else found
        return found if isinstance(turns, list) and all(map(_is_turn, turns)) else None
    if value.rstrip().endswith(("]", "}")):
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"{field!r} is text that looks like messages, but is neither JSON nor a Python literal",
        )
    return None


def _literal(value: str) -> Any:
    if len(value) > _LONGEST_LITERAL:
        raise ValueError("too long")
    return ast.literal_eval(value.strip())


def _is_turn(message: Any) -> bool:
    return isinstance(message, Mapping) and any(
        isinstance(message.get(role), str) and said in message
        for role, said in zip(_ROLE, _CONTENT, strict=True)
    )


def _turn(message: Message) -> tuple[Any, ...]:
    calls = message.get("tool_calls")
    if isinstance(calls, list):  # a call's id does not count, only its function
        calls = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    return message["role"], message["content"], calls


def _message(field: str, position: int, message: Any) -> Message:
    where = f"message {position} of {field!r}"
    if not isinstance(message, Mapping):
        raise RowFault(
            Reason.BAD_MESSAGES, field, f"{where} is not an object with role and content"
        )
    message = without_nulls(message)
    role = next((message[name] for name in _ROLE if name in message), None)
    content = next((message[name] for name in _CONTENT if name in message), None)
    if content is None and message.get("tool_calls"):
        content = ""  # an assistant turn that only calls a tool
    if isinstance(content, list):
        kinds = {str(part.get("type")) for part in content if isinstance(part, Mapping)}
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"the content of {where} is a list of parts ({', '.join(sorted(kinds)) or 'empty'}); "
            "only text is supported",
        )
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowFault(Reason.BAD_MESSAGES, field, f"{where} needs text for role and content")
    # templates use other keys, such as tool_calls and name
    extra = {key: value for key, value in message.items() if key not in {*_ROLE, *_CONTENT}}
    return {"role": _role(role), "content": content, **extra}


def _role(name: str) -> str:
    """Return the standard name of a role; unknown roles keep their name."""
    plain = name.strip().lower()
    plain = _ROLES.get(plain, plain)
    return plain if plain in _STANDARD else name


def without_nulls(value: Any) -> Any:
    """Return `value` without keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value
