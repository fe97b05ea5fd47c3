"""One message, however it is written -> a message with standard `role` and `content` keys.

A null counts as a missing key, because Arrow gives every object of a column the keys of all the
others.
"""

from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.fields import is_blank, listed, parsed, without_nulls

ROLE, CONTENT = ("role", "from"), ("content", "value")
REASONING = ("reasoning_content", "reasoning", "thinking")
TRAIN = "train"
"""The key of a message whose tokens are context, not scored. Its only value is False."""

_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "chatbot": "assistant", "model": "assistant", "ai": "assistant",
    "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_STANDARD = {"system", "developer", "user", "assistant", "tool"}
_CALLS = {"function_call", "tool_call"}  # roles of a message whose content is a tool call
_WEIGHTS = ("weight", "loss_weight", TRAIN, "training")
_NOT_EXTRA = {*ROLE, *CONTENT, *_WEIGHTS}
_TEXT_PARTS = {"text", "input_text", "output_text"}
_TEXT = ("text", "value", "content")  # keys of a part's text


def read_message(field: str, position: int, message: Any) -> dict[str, Any]:
    """Return one message of `field` with standard keys.

    Raises:
        RowFault: it is not a message, or has content that is not text.
    """
    where = f"message {position} of {field!r}"
    if not isinstance(message, Mapping):
        raise _bad(field, f"{where} is not an object with role and content")
    message = without_nulls(message)
    role = next((message[name] for name in ROLE if name in message), None)
    said = next((message[name] for name in CONTENT if name in message), None)
    if not isinstance(role, str):
        raise _bad(field, f"{where} needs text for its role")
    # templates use other keys, such as name and reasoning_content
    extra = {k: v for k, v in message.items() if k not in _NOT_EXTRA}
    if role.strip().lower() in _CALLS:
        role, said, extra["tool_calls"] = "assistant", "", _as_calls(field, where, said)
    elif calls := _tool_calls(field, where, extra.pop("tool_calls", None)):
        extra["tool_calls"] = calls
        said = "" if said is None else said  # an assistant turn that only calls a tool
    if _is_context(field, where, message):
        extra[TRAIN] = False
    return {"role": _role(role), "content": _text(field, where, said), **extra}


def _bad(field: str, detail: str) -> RowFault:
    return RowFault(Reason.BAD_MESSAGES, field, detail)


def _role(name: str) -> str:
    """Return the standard name of a role; unknown roles keep their name."""
    plain = name.strip().lower()
    plain = _ROLES.get(plain, plain)
    return plain if plain in _STANDARD else name


def _text(field: str, where: str, said: Any) -> str:
    """Return content as text. Parts of text are joined."""
    if isinstance(said, str):
        return said
    parts = listed(said) if isinstance(said, list) or _kind(said) else None
    if not isinstance(parts, list):
        raise _bad(field, f"{where} needs text for its content")
    texts = []
    for part in parts:
        kind = _kind(part)
        if kind and kind not in _TEXT_PARTS:
            raise RowFault(
                Reason.UNSUPPORTED,
                field,
                f"{where} has a part of type {kind!r}, but reflogp scores text",
            )
        text = next((part[key] for key in _TEXT if key in part), None) if kind else None
        if not isinstance(text, str):
            raise _bad(field, f"the content of {where} has a part that is not text")
        texts.append(text)
    return "".join(texts)


def _kind(part: Any) -> str:
    """Return the type of a part of a message; empty if it is not a part."""
    return str(part.get("type", "")) if isinstance(part, Mapping) else ""


def _is_context(field: str, where: str, message: Mapping[str, Any]) -> bool:
    """Whether a message says that it is not trained."""
    weights = {name: message[name] for name in _WEIGHTS if name in message}
    for name, value in weights.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise _bad(field, f"{name!r} of {where} is {value!r}; a message counts by 0 or 1")
    return not all(weights.values())


def _tool_calls(field: str, where: str, value: Any) -> list[Any]:
    """Return the tool calls of a message, which can be JSON text, as objects."""
    if is_blank(value):
        return []
    try:
        calls = listed(without_nulls(parsed(value) if isinstance(value, str) else value))
    except ValueError:
        calls = None
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise _bad(field, f"the tool calls of {where} must be objects with a name and arguments")
    return calls


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _as_calls(field: str, where: str, said: Any) -> list[Any]:
    """Return the content of a `function_call` message as tool calls."""
    calls = _tool_calls(field, where, said)
    if not calls:
        raise _bad(field, f"{where} is a tool call without a name")
    return [c if "function" in c else {"type": "function", "function": c} for c in calls]
