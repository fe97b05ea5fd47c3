"""`a=b,c=d` of a command line as a mapping, `a,b` as names; in YAML they are such already."""

from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue


def assignments(value: Any) -> Any:
    """Split at commas and equals signs; what is no text is left as it is.

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
    """The same, its values as what they look like; a column may well be called `1`."""
    if not isinstance(value, str):
        return value
    return {key: _plain(content) for key, content in assignments(value).items()}


def _plain(text: str) -> Any:
    """A value from the command line as the bool or number that it looks like."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _names(value: Any) -> Any:
    """`a,b` as a list of names, each once."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return parts
    return list(dict.fromkeys(p.strip() if isinstance(p, str) else p for p in parts if p))


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
ColumnNames = Annotated[dict[str, str], BeforeValidator(assignments)]
Arguments = Annotated[dict[str, JsonValue], BeforeValidator(_arguments)]
