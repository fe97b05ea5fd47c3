"""One field of a raw row: whether it is present, its value as text, as objects, and as a score."""

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault

SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"),
           ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"),
           ("chosen_avg_rating", "rejected_avg_rating"))  # fmt: skip
_LONGEST_LITERAL = 1 << 20  # characters; Python's parser takes a hundred bytes per character


def present(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a required field.

    Raises:
        RowFault: the field is missing or null.
    """
    if name not in row:
        raise RowFault(Reason.MISSING_FIELD, name, f"the field {name!r} is missing")
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty CSV cell
        raise RowFault(Reason.NULL_FIELD, name, f"the field {name!r} is null")
    return value


def is_blank(value: Any) -> bool:
    """Whether a value has no content. Arrow writes nulls for fields that a row lacks."""
    if isinstance(value, Mapping):
        return all(map(is_blank, value.values()))
    if isinstance(value, list):
        return all(map(is_blank, value))
    if isinstance(value, str):
        return value.strip() in {"", "[]", "{}", "null", "None"}
    return value is None or value != value  # NaN, an empty cell, differs from itself


def as_text(value: Any) -> str | None:
    """Return any value as text, without judging it; None for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty CSV cell
        return None
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


def parsed(text: str) -> Any:
    """Return the value that a text has as JSON, or as a Python literal, which pandas writes.

    Raises:
        ValueError: it is neither.
    """
    for parse in (json.loads, _literal):
        try:
            return parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError("neither JSON nor a Python literal")


def _literal(text: str) -> Any:
    if len(text) > _LONGEST_LITERAL:
        raise ValueError("too long")
    return ast.literal_eval(text.strip())


def listed(value: Any) -> Any:
    """Return an object as a list of objects; other values are returned unchanged.

    An object of lists becomes a list of objects: `datasets` can store a list of objects so.
    """
    if not isinstance(value, Mapping):
        return value
    lists = {key: inner for key, inner in value.items() if inner is not None}
    are_lists = all(isinstance(inner, list) for inner in lists.values())
    if not are_lists or len(set(map(len, lists.values()))) != 1:
        return [value]
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def without_nulls(value: Any) -> Any:
    """Return `value` without keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def confidence(row: Mapping[str, Any]) -> float | None:
    """Return the confidence of a pair, or its chosen minus rejected score, or None.

    Raises:
        RowFault: the value is not a number.
    """
    if "confidence" in row:
        return number(row, "confidence")
    for names in SCORES:
        if all(name in row for name in names):
            good, bad = (number(row, name) for name in names)
            return None if good is None or bad is None else good - bad
    return None


def number(row: Mapping[str, Any], field: str) -> float | None:
    """Return a number, also one that is written as text; None if the field is empty.

    Raises:
        RowFault: the value is not a number.
    """
    value = row[field]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise RowFault(Reason.BAD_CONFIDENCE, field, f"{field!r} is {value!r}, not a number")
    return found
