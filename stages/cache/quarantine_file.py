"""Faulty rows -> the quarantine file, written as they arrive, with a count of each reason."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.quarantine import SCHEMA, Reason
from reflogp.data_schemas.reading import place

_BATCH_ROWS = 1_000


class RowFault(Exception):  # noqa: N818 - a fault of the data, not an error of the program
    """Raised for a row that cannot be used.

    Attributes:
        reason: the reason, which is stored and counted.
        field: the column at fault, if one is.
        detail: what is wrong, for people.
    """

    def __init__(self, reason: Reason, field: str | None, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.field = field
        self.detail = detail


class Collector(Protocol):
    """Takes rows that cannot be used."""

    def add(self, fault: RowFault, *, source_row: int, file: str, line: int, row: Any) -> None:
        """Quarantine one row. `row` is stored as JSON, or unchanged if it is text."""


class HeldRows:
    """Collect quarantined rows in memory, when nothing must be written.

    Attributes:
        rows: the rows, in the columns of the quarantine file.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, fault: RowFault, *, source_row: int, file: str, line: int, row: Any) -> None:
        """See Collector."""
        self.rows.append(_record(fault, source_row, file, line, row))


class Quarantine:
    """Collect quarantined rows and write them to one Parquet file.

    Use it as a context manager: the file appears when the block ends without an exception. Nothing
    is written before the first row or the end, so an unusable source leaves nothing behind.
    """

    def __init__(self, path: Path, prepare: Callable[[], None] | None = None) -> None:
        """Collect rows for `path`. `prepare` is called before anything is written there."""
        self.reasons: Counter[str] = Counter()
        self.first: str | None = None
        self._batch: list[dict[str, Any]] = []
        self._path = path
        self._prepare = prepare
        self._writer: pq.ParquetWriter | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._opened()
        self._stack.__exit__(kind, error, traceback)

    def _opened(self) -> pq.ParquetWriter:
        if self._writer is None:
            if self._prepare is not None:
                self._prepare()
            with ExitStack() as stack:
                temporary = stack.enter_context(atomic_path(self._path))
                self._writer = stack.enter_context(
                    pq.ParquetWriter(temporary, SCHEMA, compression="zstd")
                )
                stack.callback(self._flush)
                # if one of them fails at the end, e.g. on a full disk, the others still close
                self._stack = stack.pop_all()
        return self._writer

    def add(self, fault: RowFault, *, source_row: int, file: str, line: int, row: Any) -> None:
        """See Collector."""
        self.reasons[str(fault.reason)] += 1
        self.first = self.first or f"{place(file, line)}: {fault.detail}"
        self._batch.append(_record(fault, source_row, file, line, row))
        if len(self._batch) >= _BATCH_ROWS:
            self._flush()

    def take_over(self, earlier: Iterable[pa.RecordBatch], reasons: Mapping[str, int]) -> None:
        """Add the rows of a finished quarantine file; `reasons` has their counts."""
        self.reasons.update(reasons)
        for batch in earlier:
            self._opened().write_batch(batch)

    def summary(self) -> str:
        """One line such as `3 rows quarantined (empty_response 2, broken_json 1); first: ...`."""
        total = self.reasons.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return f"{total} row{'s' * (total != 1)} quarantined ({reasons}); first: {self.first}"

    def _flush(self) -> None:
        if self._batch:
            self._opened().write_table(pa.Table.from_pylist(self._batch, schema=SCHEMA))
            self._batch = []


def _record(fault: RowFault, source_row: int, file: str, line: int, row: Any) -> dict[str, Any]:
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return {
        "source_row": source_row,
        "file": file,
        "line": line,
        "reason": str(fault.reason),
        "field": fault.field,
        "detail": _clean(fault.detail),
        "row": _clean(text),
    }


def _clean(text: str) -> str:
    """Make text valid UTF-8, as Parquet needs: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
