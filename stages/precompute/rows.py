"""Source -> tokenized rows: reads, normalizes and tokenizes; sets aside whatever cannot be used."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from data_schemas.errors import InputError
from data_schemas.quarantine import Reason
from stages.precompute.config import DataConfig
from stages.precompute.faults import RowFault
from stages.precompute.fields import as_text
from stages.precompute.kl_completions import with_kl_completions
from stages.precompute.preferences import COLUMNS, Form, Preference, detect, no_form, normalize
from stages.precompute.quarantine import Quarantine
from stages.precompute.sources import RawRow, read_source
from stages.precompute.tokenize import TokenizedRow, Tokenizer

_ROWS_TO_DETECT_FROM = 100
_ROWS_AT_ONCE = 64  # to the tokenizer, which shares them out to all cores


class Rows:
    """One pass over the source.

    Attributes:
        form: the input form, once the first row has been asked for.
        read: rows read so far, the quarantined ones included.
    """

    form: Form

    def __init__(self, config: DataConfig, quarantine: Quarantine) -> None:
        self.read = 0
        self._config = config
        self._quarantine = quarantine

    def tokenized(
        self, tokenizer: Tokenizer, advance: Callable[[float], None], every: int = 1
    ) -> Iterator[TokenizedRow]:
        """The rows that can be used, in the order of the source.

        Args:
            tokenizer: with the rules.
            advance: told of each row.
            every: take each so-manieth row only.

        Raises:
            InputError: the source cannot be read, is empty, or its columns make no known form.
        """
        source = read_source(*self._config.source())
        raw_rows = itertools.islice(source, 0, None, every)
        head = list(itertools.islice(raw_rows, _ROWS_TO_DETECT_FROM))
        self.form = self._detect(head)
        usable = self._usable(itertools.chain(head, raw_rows), tokenizer, advance)
        if self._config.kl_completions and not self.form.paired:
            usable = with_kl_completions(usable, self._config.max_length)
        yield from usable

    def _usable(
        self, raw_rows: Iterator[RawRow], tokenizer: Tokenizer, advance: Callable[[float], None]
    ) -> Iterator[TokenizedRow]:
        while some := list(itertools.islice(raw_rows, _ROWS_AT_ONCE)):
            self.read += len(some)
            preferences = [self._normalized(raw) for raw in some]
            usable = [found for found in preferences if isinstance(found, Preference)]
            rows = iter(tokenizer.many(usable))
            for raw, preference in zip(some, preferences, strict=True):
                advance(1)
                found = next(rows) if isinstance(preference, Preference) else preference
                if isinstance(found, RowFault):
                    self._quarantine.add(
                        found,
                        source_row=raw.index,
                        file=raw.file,
                        line=raw.line,
                        row=raw.text if raw.data is None else raw.data,
                    )
                elif self._config.keep:
                    yield replace(found, kept=self._kept(raw))
                else:
                    yield found

    def _detect(self, head: list[RawRow]) -> Form:
        if not head:
            raise InputError(
                f"{self._config.data}: the data set is empty. Check --data and --split."
            )
        tables = [raw.data for raw in head if raw.data is not None]
        if not tables:
            broken = head[0].fault
            raise InputError(
                f"{head[0].file}: none of the first {len(head)} rows can be read; line "
                f"{head[0].line}: {broken.detail if broken else 'empty'}. Check --data."
            )
        self._check_columns(set().union(*tables))
        forms = (detect(set(self._standard(row))) for row in tables)
        form = next((form for form in forms if form is not None), None)
        if form is None:
            raise no_form(set(tables[0]), self._config.data)
        return form

    def _check_columns(self, there: set[str]) -> None:
        for standard, column in self._config.columns.items():
            where = f"{self._config.data}: --columns {standard}={column}"
            if standard not in COLUMNS:
                raise InputError(
                    f"{where}: {standard!r} is no standard name; those are "
                    f"{', '.join(sorted(COLUMNS))}."
                )
            if column not in there:
                raise InputError(
                    f"{where}: there is no column {column!r}; there are {', '.join(sorted(there))}."
                )
        for column in self._config.keep:
            if column not in there:
                raise InputError(
                    f"{self._config.data}: --keep {column}: there is no column {column!r}; there "
                    f"are {', '.join(sorted(there))}."
                )

    def _kept(self, raw: RawRow) -> list[dict[str, str | None]]:
        """What the cache shall keep of other columns, under their own names."""
        row = raw.data or {}
        return [{"name": name, "value": as_text(row.get(name))} for name in self._config.keep]

    def _standard(self, row: dict[str, Any]) -> dict[str, Any]:
        """`row` with the user's columns under their standard names."""
        mapped = {*self._config.columns, *self._config.columns.values()}
        kept = {name: value for name, value in row.items() if name not in mapped}
        renamed = {new: row[old] for new, old in self._config.columns.items() if old in row}
        return kept | renamed

    def _normalized(self, raw: RawRow) -> Preference | RowFault:
        try:
            return self._normalize(raw)
        except RowFault as fault:
            return fault

    def _normalize(self, raw: RawRow) -> Preference:
        if raw.fault is not None:
            raise raw.fault
        preference = normalize(self._standard(raw.data or {}), self.form, raw.index)
        least = self._config.min_confidence
        if least is not None:
            if preference.confidence is None:
                raise RowFault(
                    Reason.BAD_CONFIDENCE,
                    "confidence",
                    "--min-confidence is set, but the row has no confidence and no two scores",
                )
            if preference.confidence < least:
                raise RowFault(
                    Reason.LOW_CONFIDENCE,
                    "confidence",
                    f"confidence {preference.confidence:g} is under {least:g}",
                )
        return preference
