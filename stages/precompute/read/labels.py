"""Labels of unpaired rows -> good or bad, by one convention for the whole source.

A label is 1 or 0, true or false, or one of the words below. If the labels are 1 and -1, then -1 is
bad. If 0 occurs too, -1 is ambiguous, because in some data sets it means "no label".
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.fields import present

_WORDS = {
    True: {"true", "yes", "good", "chosen", "desirable", "positive"},
    False: {"false", "no", "bad", "rejected", "undesirable", "negative"},
}
_MEANING = {word: good for good, words in _WORDS.items() for word in words}
_NAMES = {True: "good", False: "bad"}


class Labels:
    """The labels of one source, with counts of the rows read and used of each kind."""

    def __init__(self, where: str, first: Iterable[Mapping[str, Any]]) -> None:
        """Search the first rows for a 0, which decides how an earlier -1 is read."""
        self._where = where
        self._zero = any(_number(row.get("label")) == 0 for row in first)
        self._minus = False
        self._read: Counter[bool] = Counter()
        self._used: Counter[bool] = Counter()
        self._unread = 0

    def read(self, row: Mapping[str, Any]) -> bool:
        """Return whether the response of `row` is good.

        Raises:
            RowFault: the label is missing, null or unknown.
            InputError: the labels have both 0 and -1.
        """
        number = _number(row.get("label"))
        self._zero = self._zero or number == 0
        self._minus = self._minus or (number == -1 and not self._zero)
        if self._zero and self._minus:
            raise InputError(
                f"{self._where}: the labels are 1, 0 and -1, so the meaning of -1 is ambiguous. "
                "Use true and false as labels, and leave out rows without a label."
            )
        try:
            good = False if number == -1 and self._minus else is_good(row)
        except RowFault:
            self._unread += 1
            raise
        self._read[good] += 1
        return good

    def use(self, *, good: bool) -> None:
        """Count a row that is used."""
        self._used[good] += 1

    def require_both(self) -> None:
        """Check that a source has not lost all its good rows or all its bad ones.

        Raises:
            InputError: it has.
        """
        for good, name in _NAMES.items():
            lost = self._read[good] + self._unread
            if self._used[not good] and not self._used[good] and lost:
                raise InputError(
                    f"{self._where}: no {name} response is left: all {self._used[not good]:,} "
                    f"usable rows have a {_NAMES[not good]} label, {self._read[good]:,} rows with "
                    f"a {name} label are quarantined, and {self._unread:,} rows have a label that "
                    "cannot be read. Labels are true and false, 1 and 0, or 1 and -1. Fix the "
                    "labels, or the quarantined rows."
                )


def is_good(row: Mapping[str, Any]) -> bool:
    """Return whether the response of `row` is good, by its label alone.

    Raises:
        RowFault: the label is missing, null or unknown.
    """
    value = present(row, "label")
    number = _number(value)
    if number not in (0, 1):
        raise RowFault(Reason.WRONG_TYPE, "label", f"label is {value!r}, not true or false")
    return number == 1


def _number(value: Any) -> float | None:
    """Return a label as a number, or None if it is neither a number nor a known word."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 2**53 else math.inf
    if not isinstance(value, str):
        return None
    word = value.strip().lower()
    if word in _MEANING:
        return float(_MEANING[word])
    try:
        return float(word)
    except ValueError:
        return None
