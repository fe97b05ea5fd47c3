"""Source -> tokenized rows: read, normalize and tokenize; quarantine rows that cannot be used."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Reading, Remark, Whereabouts, numbered
from reflogp.stages.cache.quarantine_file import Collector, RowFault
from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.precompute.read.column_use import ColumnUse
from reflogp.stages.precompute.read.fields import as_text
from reflogp.stages.precompute.read.forms import ReadRules
from reflogp.stages.precompute.read.labels import Labels
from reflogp.stages.precompute.read.preferences import Form, Preference, detect, no_form, normalize
from reflogp.stages.precompute.read.sources import RawRow, read_source
from reflogp.stages.precompute.read.tables import pairs
from reflogp.stages.precompute.tokens.kl_completions import with_kl_completions
from reflogp.stages.precompute.tokens.remarks import Notices
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow, Tokenizer

_ROWS_TO_DETECT_FROM = 100
_ROWS_AT_ONCE = 64  # per call of the tokenizer, which uses all cores
_ROWS_OF_A_PROMPT = 1_000  # at most, where each response has a row

_Unit = list[RawRow]
"""The rows that are read together: one, or all adjacent rows of a prompt."""


class Reader:
    """One pass over the source.

    Attributes:
        form: the input form; set once the first row has been requested.
        read: rows read so far, including quarantined ones.
    """

    form: Form
    _labels: Labels

    def __init__(self, config: DataConfig, quarantine: Collector) -> None:
        self.read = 0
        self._config = config
        self._quarantine = quarantine
        self._rules = ReadRules(whole=config.responses == "whole", as_chat=config.as_chat)
        self._columns = ColumnUse(config)
        self._notices = Notices()
        self._whereabouts = Whereabouts()

    def tokenized(
        self,
        tokenizer: Tokenizer,
        advance: Callable[[float], None],
        every: int = 1,
        most: int | None = None,
    ) -> Iterator[TokenizedRow]:
        """Yield the usable rows, in the order of the source.

        Args:
            tokenizer: a tokenizer with its rules.
            advance: called with the number of rows that were read, for progress.
            every: read only every n-th row, or the rows of every n-th prompt.
            most: read only this many of the first rows.

        Raises:
            InputError: the source is unreadable or empty, its columns match no input form, a
                column with text would be ignored, or all rows of one label are quarantined.
        """
        source = itertools.islice(read_source(*self._config.source()), most)
        head = list(itertools.islice(source, _ROWS_TO_DETECT_FROM))
        self.form = self._detect(head)
        units = itertools.islice(self._units(itertools.chain(head, source)), 0, None, every)
        usable = self._usable(units, tokenizer, advance)
        if self._config.kl_completions and not self.form.paired:
            usable = with_kl_completions(usable, self._config.max_length)
        yield from usable
        whole = every == 1 and (most is None or self.read < most)
        if whole and not self.form.paired:
            self._labels.require_both()

    def reading(self) -> Reading:
        """Return the use of each column and the notices, for the rows read so far."""
        parts = self._whereabouts.parts
        return Reading(
            columns=self._columns.record(self.form),
            notices=self._notices.records(parts),
            parts=parts,
        )

    def _units(self, raw_rows: Iterator[RawRow]) -> Iterator[_Unit]:
        table = self.form.table
        if table is None or not table.grouped:
            yield from ([raw] for raw in raw_rows)
            return
        prompt = table.columns[0]
        for _, adjacent in itertools.groupby(raw_rows, lambda raw: self._value(raw, prompt)):
            while unit := list(itertools.islice(adjacent, _ROWS_OF_A_PROMPT)):
                yield unit

    def _usable(
        self, units: Iterator[_Unit], tokenizer: Tokenizer, advance: Callable[[float], None]
    ) -> Iterator[TokenizedRow]:
        while some := list(itertools.islice(units, _ROWS_AT_ONCE)):
            self.read += sum(map(len, some))
            preferences = [(unit, found) for unit in some for found in self._normalized(unit)]
            usable = [found for _, found in preferences if isinstance(found, Preference)]
            rows = iter(tokenizer.many(usable, self._notices))
            for unit, preference in preferences:
                found = next(rows) if isinstance(preference, Preference) else preference
                if isinstance(found, RowFault):
                    self._set_aside(unit, found)
                    continue
                self._labels.use(good=found.chosen_ids is not None)
                yield replace(found, kept=self._kept(unit[0])) if self._config.keep else found
            advance(sum(map(len, some)))

    def _set_aside(self, unit: _Unit, fault: RowFault) -> None:
        first = unit[0]
        data = [raw.data for raw in unit]
        self._quarantine.add(
            fault,
            source_row=first.index,
            file=first.file,
            line=first.line,
            row=first.text if first.data is None else data[0] if len(data) == 1 else data,
        )

    def _detect(self, head: list[RawRow]) -> Form:
        if not head:
            raise InputError(
                f"{self._config.data}: the data set is empty. Check --data and --split."
            )
        tables = [raw.data for raw in head if raw.data is not None]
        if not tables:
            broken = head[0].fault
            raise InputError(
                f"{head[0].file}: none of the first {len(head)} rows can be read; "
                f"{numbered(head[0].file, head[0].line)}: {broken.detail if broken else 'empty'}. "
                "Check --data."
            )
        for row in tables:
            self._columns.see(row)
        self._columns.require(self._all_columns(set().union(*tables)))
        form = detect(self._columns.standard_names())
        if form is None:
            raise no_form(set().union(*tables), self._config.data)
        rows = [row for row in map(self._standard, tables) if row is not None]
        made = [one for row in rows for one in pairs([row], form.table, self._config.pair)]
        usable = [one for one in made if not isinstance(one, RowFault)]
        self._columns.require_some_supported(usable, form, self._rules)
        self._labels = Labels(self._config.data, rows)
        return form

    def _standard(self, table: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._columns.standard(table)
        except RowFault:
            return None

    def _value(self, raw: RawRow, name: str) -> Any:
        """Return the value of a column, or what equals nothing if the row has none."""
        row = self._standard(raw.data) if raw.data is not None else None
        value = (row or {}).get(name)
        return object() if value is None else value

    def _all_columns(self, there: set[str]) -> set[str]:
        """Return the columns of the first rows, or of all rows if options name others."""
        if not self._columns.all_named(there):
            for raw in read_source(*self._config.source()):
                there.update(raw.data or ())
        return there

    def _kept(self, raw: RawRow) -> list[dict[str, str | None]]:
        """Return the columns that --keep names, for the cache."""
        row = raw.data or {}
        return [{"name": name, "value": as_text(row.get(name))} for name in self._config.keep]

    def _normalized(self, unit: _Unit) -> list[Preference | RowFault]:
        """Return the preferences of a unit, or the faults in their place."""
        try:
            rows = [self._row(raw) for raw in unit]
        except RowFault as fault:
            return [fault]
        made = pairs(rows, self.form.table, self._config.pair)
        return [self._normalize(row, unit[0]) for row in made]

    def _row(self, raw: RawRow) -> dict[str, Any]:
        """Return a row with its columns under their standard names."""
        self._whereabouts.add(raw.index, raw.file, raw.line)
        if raw.fault is not None or raw.data is None:
            raise raw.fault or RowFault(Reason.NOT_AN_OBJECT, None, "not a row")
        if self._columns.see(raw.data):
            self._require_form(_where(raw))
        return self._columns.standard(raw.data)

    def _normalize(self, row: dict[str, Any] | RowFault, raw: RawRow) -> Preference | RowFault:
        if isinstance(row, RowFault):
            return row
        try:
            return self._preference(row, raw)
        except RowFault as fault:
            return fault

    def _preference(self, row: dict[str, Any], raw: RawRow) -> Preference:
        where = _where(raw)
        if not self.form.paired:
            row["label"] = self._labels.read(row)
        self._columns.require_supported(row)
        self._columns.require_prompt_known(row, self.form, where)
        preference = normalize(row, self.form, raw.index, self._rules)
        self._columns.require_all_used(row, preference, self.form, where)
        self._require_confidence(preference)
        if preference.bad_score is not None:
            self._notices.add(Remark.UNREADABLE_SCORE, raw.index, preference.bad_score.detail)
        return preference

    def _require_form(self, where: str) -> None:
        """Check that the columns of later rows do not change the input form.

        Raises:
            InputError: they do.
        """
        form = detect(self._columns.standard_names())
        if form is not None and form.name != self.form.name:
            raise InputError(
                f"{where}: this is the first row with the columns {form.name}, but the rows "
                f"before it were read as {self.form.name}. Put rows of different forms into "
                "different files."
            )

    def _require_confidence(self, preference: Preference) -> None:
        least = self._config.min_confidence
        if least is None:
            return
        if preference.bad_score is not None:
            raise preference.bad_score
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
                f"confidence {preference.confidence:g} is below {least:g}",
            )


def _where(raw: RawRow) -> str:
    return f"{raw.file}: {numbered(raw.file, raw.line)}"
