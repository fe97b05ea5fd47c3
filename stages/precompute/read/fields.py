"""One field of a raw row: whether it is present, its value as text, and as a score."""

import json
import math
from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault

SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"),
           ("chosen_rating", "rejected_rating"))  # fmt: skip


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


def as_text(value: Any) -> str | None:
    """Return any value as text, without judging it; None for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty CSV cell
        return None
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


def confidence(row: Mapping[str, Any]) -> float | None:
    """Return the confidence of a pair, or its chosen minus rejected score, or None.

    Raises:
        RowFault: the value is not a number.
    """
    if "confidence" in row:
        return _number(row, "confidence")
    for names in SCORES:
        if all(name in row for name in names):
            good, bad = (_number(row, name) for name in names)
            return None if good is None or bad is None else good - bad
    return None


def _number(row: Mapping[str, Any], field: str) -> float | None:
    value = row[field]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowFault(Reason.BAD_CONFIDENCE, field, f"{field!r} is {value!r}, not a number")
    return number
