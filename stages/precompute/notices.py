"""Remarks on rows that are used all the same -> a count of each, with the first row."""

from collections.abc import Sequence

from data_schemas.reading import Notice, Part, Remark, locate


class Notices:
    """Counts remarks; the first row of each is remembered by its source row."""

    def __init__(self) -> None:
        self._counts: dict[Remark, int] = {}
        self._first: dict[Remark, tuple[int, str]] = {}

    def add(self, remark: Remark, source_row: int, detail: str = "") -> None:
        """Count one row."""
        self._counts[remark] = self._counts.get(remark, 0) + 1
        self._first.setdefault(remark, (source_row, detail))

    def records(self, parts: Sequence[Part]) -> list[Notice]:
        """The notices, with the file and line of each first row."""
        found = []
        for remark, count in self._counts.items():
            row, detail = self._first[remark]
            file, line = locate(parts, row)
            detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
            found.append(Notice(remark=remark, noticed=count, file=file, line=line, detail=detail))
        return found
