"""Labels of unpaired rows -> good or bad, by one convention for the whole file.

A label is 1 or 0, true or false, or one of the words below. -1 is bad in a file whose labels are 1
and -1; where there is a 0 as well, -1 says "no label" in some data sets, and nobody can tell.
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
    """The labels of one source, and what became of the rows of each kind."""

    def __init__(self, where: str, first: Iterable[Mapping[str, Any]]) -> None:
        """Look at the first rows, so that a -1 before the first 0 is not misread."""
        self._where = where
        self._zero = any(_number(row.get("label")) == 0 for row in first)
        self._minus = False
        self._read: Counter[bool] = Counter()
        self._used: Counter[bool] = Counter()
        self._unread = 0

    def read(self, row: Mapping[str, Any]) -> bool:
        """Whether the response of `row` is a good one.

        Raises:
            RowFault: the label is missing, null or none of the known ones.
            InputError: a 0 comes after a -1 that was taken for bad.
        """
        number = _number(row.get("label"))
        self._zero = self._zero or number == 0
        self._minus = self._minus or (number == -1 and not self._zero)
        if self._zero and self._minus:
            raise InputError(
                f"{self._where}: the labels hold 1, 0 and -1, so nobody can tell what -1 means. "
                "Write true and false for them, and leave out rows without a label."
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
        """Refuse a source that lost all its good, or all its bad rows.

        Raises:
            InputError: so it is.
        """
        for good, name in _NAMES.items():
            lost = self._read[good] + self._unread
            if self._used[not good] and not self._used[good] and lost:
                raise InputError(
                    f"{self._where}: no {name} response is left: each of the "
                    f"{self._used[not good]:,} rows that can be used has a {_NAMES[not good]} "
                    f"one, {self._read[good]:,} rows with a {name} label are quarantined, and "
                    f"{self._unread:,} rows have a label that cannot be read. Labels are true and "
                    "false, or 1 and 0, or 1 and -1. Fix them, or what is wrong with those rows."
                )


def is_good(row: Mapping[str, Any]) -> bool:
    """Whether the response of `row` is a good one, by its label alone.

    Raises:
        RowFault: the label is missing, null or none of the known ones.
    """
    value = present(row, "label")
    number = _number(value)
    if number not in (0, 1):
        raise RowFault(Reason.WRONG_TYPE, "label", f"label is {value!r}, not true or false")
    return number == 1


def _number(value: Any) -> float | None:
    """A label as a number, where it is or says one."""
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
