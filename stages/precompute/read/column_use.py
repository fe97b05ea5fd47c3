"""The use of each column: what it means, whether it is used, and whether it can be ignored.

Text that can belong to a prompt is never dropped silently: it is an error unless `--columns
prompt=a+b` joins its column to the prompt, or `--ignore a` allows dropping it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Columns
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.precompute.read.fields import SCORES, is_blank
from reflogp.stages.precompute.read.forms import ReadRules
from reflogp.stages.precompute.read.messages import looks_like_messages, text
from reflogp.stages.precompute.read.preferences import (
    PROMPT_NAMES,
    STANDARD_NAMES,
    Form,
    Preference,
    normalize,
)
from reflogp.stages.precompute.read.tables import COLUMNS
from reflogp.stages.precompute.read.tools import TEMPLATE_KWARGS, TOOLS
from reflogp.stages.precompute.read.whole_texts import is_transcript

_SYSTEM_NAMES = ("system_prompt", "system_message")
_KNOWN = {"prompt", "history", *PROMPT_NAMES, *_SYSTEM_NAMES}
UNSUPPORTED = {"image", "images", "rejected_images", "audio", "audios", "video", "videos",
               "documents", "functions", "reasoning_content", "thinking",
               "tool_calls"}  # fmt: skip
_WAY_OUT = {"functions": "--columns tools=functions reads it as tools, "}
# Words in the name of a column that describes the row.
_ABOUT = re.compile(
    "ids?|u?uid|idx|index|key|hash|md5|sha|url|link|path|file(name)?|source|origin|dataset|subset|"
    "split|fold|lang(uage)?|locale|country|categor(y|ies)|topics?|tags?|labels?|type|kind|domain|"
    "models?|engine|generator|annotat(or|ors|ion|ions)|worker|author|date|time(stamp)?|created|"
    "updated|scores?|ratings?|rank(ing)?|reward|margin|confidence|agreement|len(gth)?|tokens?|"
    "count|num|version|license|status|reason|rationale|explanation|comments?|feedback|critique|"
    "notes?|meta(data)?|info|difficulty|quality|safety|toxicity|chosen|rejected"
)
_WORDS_OF_NAME = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_SEVERAL_WORDS = re.compile(r"\S\s+\S|[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]{3}")
_JOINED = "+"
_MOST_NAMES, _MOST_TOLD = 10_000, 100  # columns; in some data, every row has new names


class ColumnUse:
    """The use of the columns of one source, under a configuration.

    A row is an error if one of three kinds of columns has text that would not reach the model:

    - a system text next to a plain-text prompt, which has no system turn to put it in;
    - a column with a common name for prompts (question, input, ...) next to the prompt column;
    - any text next to whole texts, whose prompt would be guessed from their common beginning.
      Columns whose name or content shows that they describe the row (an id, a score, a source, a
      language, a single word) are exempt. Transcripts mark their turns, so nothing is guessed.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._sources = {new: old.split(_JOINED) for new, old in config.columns.items()}
        self._names: set[str] = set()
        self._with_messages = False

    def require(self, there: set[str]) -> None:
        """Check that every column named by an option exists in `there`.

        Raises:
            InputError: a column is missing, or --columns uses a name that is not standard.
        """
        named = [("--keep", name, name) for name in self._config.keep]
        named += [("--ignore", name, name) for name in self._config.ignore]
        for new, old in self._config.columns.items():
            if new not in STANDARD_NAMES | COLUMNS:
                raise InputError(
                    f"{self._config.data}: --columns {new}={old}: {new!r} is not a standard name. "
                    f"Use one of {', '.join(sorted(STANDARD_NAMES | COLUMNS))}."
                )
            if old in there:
                self._sources[new] = [old]  # a plus sign can be part of a name
            named += [("--columns", f"{new}={old}", part) for part in self._sources[new]]
        for option, value, name in named:
            if name not in there:
                raise InputError(
                    f"{self._config.data}: {option} {value}: there is no column {name!r}. The "
                    f"columns are {', '.join(sorted(there))}."
                )

    def all_named(self, there: set[str]) -> bool:
        """Whether every column named by an option exists in `there`."""
        named = {*self._config.keep, *self._config.ignore}
        for old in self._config.columns.values():
            named.update([old] if old in there else old.split(_JOINED))
        return named <= there

    def see(self, row: Mapping[str, Any]) -> bool:
        """Record the columns of `row`; return whether a new one can change the input form."""
        if self._names.issuperset(row):
            return False
        new = set(row) - self._names
        matters = new & STANDARD_NAMES.union(COLUMNS, *self._sources.values())
        if len(self._names) < _MOST_NAMES or matters:
            self._names |= new
        return bool(matters)

    def standard_names(self) -> set[str]:
        """Return all columns seen so far, under their standard names."""
        return set(self.standard(dict.fromkeys(self._names, "")))

    def standard(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `row` with columns under their standard names and without ignored ones.

        Raises:
            RowFault: --columns joins columns that are not text.
        """
        if not self._sources and not self._config.ignore:
            return dict(row)
        gone = {*self._sources, *self._config.ignore}.union(*self._sources.values())
        kept = {name: value for name, value in row.items() if name not in gone}
        for new, old in self._sources.items():
            there = [name for name in old if name in row]
            if there:
                kept[new] = row[old[0]] if len(old) == 1 else _joined(row, there)
        return kept

    def require_supported(self, row: Mapping[str, Any]) -> None:
        """Check that a row has no content that cannot be shown to the model.

        Raises:
            RowFault: the row has images, documents or the like.
        """
        for name in sorted(UNSUPPORTED.intersection(row)):
            try:
                empty = is_blank(row[name])
            except RecursionError:  # about a thousand levels of nesting
                empty = False
            if not empty:
                raise RowFault(
                    Reason.UNSUPPORTED,
                    name,
                    f"the column {name!r} has content that would not reach the model: reflogp "
                    "scores text, that of prompts and responses; "
                    f"{_WAY_OUT.get(name, '')}--ignore {name} uses such rows without it",
                )

    def require_some_supported(
        self, rows: Sequence[Mapping[str, Any]], form: Form, rules: ReadRules
    ) -> None:
        """Check that at least one of the first rows of a source is supported.

        Raises:
            InputError: none is.
        """
        faults = []
        for row in rows:
            try:
                self.require_supported(row)
                normalize(row, form, 0, rules)
            except RowFault as fault:
                if fault.reason is Reason.UNSUPPORTED:
                    faults.append(fault)
        if rows and len(faults) == len(rows):
            raise InputError(f"{self._config.data}: in all of the first rows, {faults[0].detail}.")

    def require_prompt_known(self, row: Mapping[str, Any], form: Form, where: str) -> None:
        """Check that no other column of a row of whole texts can be their prompt.

        Raises:
            InputError: one can.
        """
        if form.name != "chosen+rejected":
            return
        chosen, rejected = row.get("chosen"), row.get("rejected")
        if not (isinstance(chosen, str) and isinstance(rejected, str)):
            return
        if looks_like_messages(chosen) or looks_like_messages(rejected):
            return
        marked = is_transcript(chosen, rejected)
        for name in sorted(set(row) - STANDARD_NAMES - {*self._config.keep} | (_KNOWN & set(row))):
            if name not in _KNOWN and (marked or not _may_be_prompt(name, row[name])):
                continue
            said = _text_of(row[name])
            if said and not (said in chosen and said in rejected):
                raise InputError(self._no_prompt(name, row, where))

    def _no_prompt(self, name: str, row: Mapping[str, Any], where: str) -> str:
        names = [known for known in PROMPT_NAMES if _text_of(row.get(known))] or [name]
        joined = _JOINED.join(sorted(names, key=lambda n: n == "input"))
        system = next((s for s in ("system", *_SYSTEM_NAMES) if _text_of(row.get(s))), None)
        more = [f"--columns prompt={names[0]}"] + [f"--columns prompt={joined}"] * (len(names) > 1)
        if system:
            more.append(f"--columns prompt={system}{_JOINED}{names[0]} with the system text first")
            mapped = f",system={system}" * (system != "system")
            more.append(f"--columns prompt={names[0]}{mapped} --as-chat with a system message")
        return (
            f"{where}: there is no column 'prompt', and chosen and rejected are whole texts, but "
            f"{name!r} has text too. If it is the prompt, name it: {', or '.join(more)}. If chosen "
            f"and rejected begin with the prompt, give --ignore "
            f"{','.join([*names, *([system] if system else [])])}."
        )

    def require_all_used(
        self, row: Mapping[str, Any], preference: Preference, form: Form, where: str
    ) -> None:
        """Check that all text of a row that can belong to its prompt is in the prompt.

        Raises:
            InputError: some of it is not.
        """
        prompt = _shown(preference)
        raw = isinstance(preference.prompt, str)
        self._with_messages = self._with_messages or not raw
        own = self._source(form.columns[0])
        if raw and (system := _text_of(row.get("system"))) and system not in prompt:
            source = self._source("system")
            first = f"--columns prompt={source}{_JOINED}{own} to put it first, "
            raise InputError(
                f"{where}: {source!r} has text, but the prompt is plain text without a system "
                f"turn. Give --as-chat to make it one, {first * (form.columns[0] == 'prompt')}or "
                f"--ignore {source} to leave it out."
            )
        for name in _KNOWN.intersection(row).difference(form.columns):
            said = _text_of(row[name])
            if said and said not in prompt:
                first, second = (name, own) if name in _SYSTEM_NAMES else (own, name)
                way = f"--columns prompt={first}{_JOINED}{second} to join both, or "
                if not raw or form.columns[0] != "prompt":
                    way = f"--columns system={name}, or " * (name in _SYSTEM_NAMES and not raw)
                raise InputError(
                    f"{where}: {name!r} has text that may belong to the prompt, but it is not "
                    f"used. Give {way}--ignore {name} to leave it out."
                )

    def record(self, form: Form) -> Columns:
        """Return the use of each column seen so far."""
        standard = self.standard_names()
        wanted = [*form.columns, *["system", TOOLS, TEMPLATE_KWARGS] * self._with_messages]
        scores = [("confidence",), *SCORES]
        wanted += next((names for names in scores if standard.issuperset(names)), ())
        used = {name: self._source(name) for name in wanted if name in standard}
        taken = {part for name in used for part in self._sources.get(name, [name])}
        rest = sorted(self._names - taken - {*self._config.keep, *self._config.ignore})
        more = [f"and {len(rest) - _MOST_TOLD} more"] if len(rest) > _MOST_TOLD else []
        return Columns(
            used={name: _printable(source) for name, source in used.items()},
            kept=list(map(_printable, self._config.keep)),
            left_out=list(map(_printable, self._config.ignore)),
            not_used=[*map(_printable, rest[:_MOST_TOLD]), *more],
        )

    def _source(self, standard: str) -> str:
        """Return the user's name of a column with a standard name."""
        return _JOINED.join(self._sources.get(standard, [standard]))


def _joined(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    parts = [row[name] for name in names if not is_blank(row[name])]
    for part in parts:
        if not isinstance(part, str) or looks_like_messages(part):
            raise RowFault(Reason.WRONG_TYPE, "prompt", "only columns of text can be joined")
    return "\n\n".join(part.strip("\n") for part in parts) if parts else None


def _shown(preference: Preference) -> str:
    """Return the text that the policy is shown: the prompt, and questions inside the responses."""
    responses = [
        side for side in (preference.chosen, preference.rejected) if isinstance(side, list)
    ]
    asked = [m for response in responses for m in response if m["role"] != "assistant"]
    return text(preference.prompt) + text(asked)


def _printable(name: str) -> str:
    """Make a name valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _may_be_prompt(name: str, value: Any) -> bool:
    """Whether a column can be the prompt, judging by its name and one of its values."""
    if any(_ABOUT.fullmatch(word.lower()) for word in _WORDS_OF_NAME.findall(name)):
        return False
    if isinstance(value, str):
        return _SEVERAL_WORDS.search(value) is not None
    return looks_like_messages(value)


def _text_of(value: Any) -> str:
    """Return a text, or the content of messages, without surrounding white space."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and looks_like_messages(value):
        return "".join(str(m.get("content") or m.get("value") or "") for m in value).strip()
    return ""
