"""One field of a raw row -> text, messages, a label or a number; or what is wrong with it."""

import json
import math
from collections.abc import Mapping
from typing import Any

from data_schemas.quarantine import Reason
from stages.precompute.faults import RowFault

Message = dict[str, Any]
Content = str | list[Message]

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant",
          "observation": "tool", "function": "tool"}  # fmt: skip
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"),
           ("chosen_rating", "rejected_rating"))  # fmt: skip


def present(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that must be there."""
    if name not in row:
        raise RowFault(Reason.MISSING_FIELD, name, f"the field {name!r} is missing")
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty CSV cell
        raise RowFault(Reason.NULL_FIELD, name, f"the field {name!r} is null")
    return value


def content(row: Mapping[str, Any], name: str) -> Content:
    """A field as text or as messages with `role` and `content`, whatever its data calls them."""
    value = present(row, name)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        kind = type(value).__name__
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is {kind}, not text or messages")
    return [_message(name, position, message) for position, message in enumerate(value)]


def _message(field: str, position: int, message: Any) -> Message:
    where = f"message {position} of {field!r}"
    if not isinstance(message, Mapping):
        raise RowFault(Reason.BAD_MESSAGES, field, f"{where} is no object with role and content")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowFault(Reason.BAD_MESSAGES, field, f"{where} needs text for role and content")
    # Keys such as tool_calls and name matter to templates; nulls come from a shared Arrow schema.
    extra = {
        key: value
        for key, value in message.items()
        if key not in {"role", "from", "content", "value"} and value is not None
    }
    return {"role": _ROLES.get(role, role), "content": content, **extra}


def label(row: Mapping[str, Any]) -> bool:
    """Whether an unpaired response is a good one."""
    value = present(row, "label")
    if isinstance(value, str):  # every cell of a CSV file is text
        if value.strip().lower() in {"true", "1", "false", "0"}:
            return value.strip().lower() in {"true", "1"}
    elif value in (0, 1):  # True and False too
        return bool(value)
    raise RowFault(Reason.WRONG_TYPE, "label", f"label is {value!r}, not true or false")


def text(content: Content) -> str:
    """All that is said in `content`."""
    return content if isinstance(content, str) else "".join(m["content"] for m in content)


def require_unicode(field: str, content: Content | None) -> None:
    """A JSON escape can smuggle in half a surrogate pair, which no tokenizer takes."""
    try:
        text(content or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            Reason.INVALID_UTF8, field, f"{field!r} holds half a surrogate pair: {error.reason}"
        ) from error


def as_text(value: Any) -> str | None:
    """Any value as text, which is none of ours to judge; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty CSV cell
        return None
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


def confidence(row: Mapping[str, Any]) -> float | None:
    """The confidence of a pair, or chosen minus rejected score, or None where it has neither."""
    if "confidence" in row:
        return _number(row, "confidence")
    for good, bad in SCORES:
        if good in row and bad in row:
            return _number(row, good) - _number(row, bad)
    return None


def _number(row: Mapping[str, Any], field: str) -> float:
    value = row[field]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowFault(Reason.BAD_CONFIDENCE, field, f"{field!r} is {value!r}, not a number")
    return number
