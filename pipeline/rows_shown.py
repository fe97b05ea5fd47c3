"""Prints rows as the tokens they became, and quarantined rows as the text they were.

Colours tell the parts of a row and its tokens apart. Without colours, the parts have headings, and
context inside a response stands in brackets.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from reflogp.data_schemas.reading import place
from reflogp.pipeline.console import TerminalConsole
from reflogp.stages.model.decoder import Decoder

Row = Mapping[str, Any]
"""Columns of a cache shard, or of a planned one, which has no log-probs."""

_Shades = tuple[str, str]  # of every other token
_GREY = ("color(252) on color(236)", "color(252) on color(240)")
_CONTEXT = (f"{_GREY[0]} underline", f"{_GREY[1]} underline")
_PARTS: dict[str, tuple[str, str, _Shades]] = {  # name and style of the heading, shades
    "prompt": ("prompt", "bold", _GREY),
    "chosen": ("chosen", "bold green", ("color(194) on color(22)", "color(194) on color(28)")),
    "rejected": ("rejected", "bold red", ("color(224) on color(88)", "color(224) on color(124)")),
    "kl": ("KL completion", "bold blue", ("color(255) on color(24)", "color(255) on color(31)")),
}
_LEFT, _RIGHT, _BREAK = "⟦", "⟧", "⏎"
_OURS = {ord(mark): mark.encode("unicode_escape").decode() for mark in (_LEFT, _RIGHT, _BREAK)}
_FIRST, _LAST = 200, 100  # tokens shown of a longer part
_CHARACTERS = 400  # shown of a quarantined row
_LOST = {"prompt": "its beginning was cut", "chosen": "its end was cut",
         "rejected": "its end was cut"}  # fmt: skip


def print_row(
    row: Row, where: str, decoder: Decoder | None, console: TerminalConsole, *, whole: bool = False
) -> None:
    """Print a row: a line of its own, then each part with a heading.

    Args:
        row: the row.
        where: its file and line, or an empty text.
        decoder: makes the texts of its tokens; None shows their ids.
        console: to print on.
        whole: whether long parts are shown completely.
    """
    said = [f"row {row['source_row']}", where, f"id {row['row_id']}"]
    if row["confidence"] is not None:
        said.append(f"confidence {row['confidence']:g}")
    console.heading(", ".join(filter(None, said)))
    for part, (name, style, shades) in _PARTS.items():
        ids = row[f"{part}_ids"]
        if ids is None:
            continue
        mask = row.get(f"{part}_mask")
        owned = [True] * len(ids) if mask is None else list(map(bool, mask))
        console.heading(f"{name}: {_figures(row, part, owned)}", style)
        console.passage(_pieces(ids, owned, shades, decoder, whole=whole))
    console.text("")


def _figures(row: Row, part: str, owned: Sequence[bool]) -> str:
    """Token counts, log-probs in nats, and what was cut."""
    own = sum(owned)
    context = len(owned) - own
    beside = f" and {context:,} of context {_LEFT}in brackets{_RIGHT}" if context else ""
    said = [f"{own:,} token{'s' * (own != 1)}{beside}"]
    total = row.get(f"ref_{part}_logp_sum")
    if total is not None and own:
        said.append(f"log-prob {total:.2f} nats ({total / own:.3f} per token)")
    if row.get(f"{part}_truncated"):
        said.append(f"{_LOST[part]} to fit max_length")
    return ", ".join(said)


def _pieces(
    ids: Sequence[int], owned: Sequence[bool], shades: _Shades, decoder: Decoder | None, *,
    whole: bool,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield the text and style of each token that is shown."""
    count = len(ids)
    short = not whole and count > _FIRST + _LAST
    spans = [(0, _FIRST), (count - _LAST, count)] if short else [(0, count)]
    texts = [f"{number} " for number in ids] if decoder is None else decoder.token_texts(ids)
    special = frozenset[int]() if decoder is None else decoder.special
    for start, end in spans:
        if start:
            yield f"\n[… {start - _FIRST:,} more tokens …]\n", ""
        for own, run in groupby(range(start, end), owned.__getitem__):
            yield _LEFT * (not own), ""
            for i in run:
                shade = (shades if own else _CONTEXT)[i % 2]
                yield _marked(texts[i]), shade + " bold" * (ids[i] in special)
            yield _RIGHT * (not own), ""


def _marked(text: str) -> str:
    """The text of a token with its line breaks visible."""
    return text.translate(_OURS).replace("\n", f"{_BREAK}\n")


def print_quarantined(
    counts: Mapping[str, int], rows: Iterable[Row], console: TerminalConsole, most: int
) -> None:
    """Print quarantined rows by reason.

    Args:
        counts: the number of quarantined rows by reason.
        rows: the rows, or some of each reason, in the columns of the quarantine file.
        console: to print on.
        most: largest number of rows to print of each reason.
    """
    by_reason: dict[str, list[Row]] = {}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    for reason, count in counts.items():
        shown = by_reason.get(reason, [])[:most]
        some = f", the first {len(shown)}" if len(shown) < count else ""
        console.heading(f"{reason}: {count:,} row{'s' * (count != 1)}{some}", "bold yellow")
        for row in shown:
            field = f", {row['field']}" if row["field"] else ""
            where = f"row {row['source_row']}, {place(row['file'], row['line'])}{field}"
            console.passage([(f"{where}: {row['detail']}".replace("\n", _BREAK), "")])
            console.passage([(f"  {_shortened(row['row'])}".replace("\n", _BREAK), "dim")])
        console.text("")


def _shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= _CHARACTERS:
        return text
    return f"{text[: _CHARACTERS * 2 // 3]} […] {text[-_CHARACTERS // 3 :]}"
