"""Parses `a=b,c=d` and `a,b` from the command line. In YAML they are mappings and lists."""

from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue


def assignments(value: Any) -> Any:
    """Split text at commas and equals signs. Other values are returned unchanged.

    Raises:
        ValueError: a part is not of the form name=value.
    """
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part]
    if not all(key.strip() and content.strip() for key, _, content in pairs):
        raise ValueError(f"{value!r} is not of the form name=value,name=value")
    return {key.strip(): content.strip() for key, _, content in pairs}


def _arguments(value: Any) -> Any:
    """Like `assignments`, but parses bools and numbers. A column may be called `1`."""
    if not isinstance(value, str):
        return value
    return {key: _plain(content) for key, content in assignments(value).items()}


def _plain(text: str) -> Any:
    """Parse a bool or a number; keep other text."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _names(value: Any) -> Any:
    """Split `a,b` into a list of unique names."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return parts
    return list(dict.fromkeys(p.strip() if isinstance(p, str) else p for p in parts if p))


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
ColumnNames = Annotated[dict[str, str], BeforeValidator(assignments)]
Arguments = Annotated[dict[str, JsonValue], BeforeValidator(_arguments)]
