"""Texts -> token ids, and where in the text each token begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.tokens.special_tokens import SpecialTokens


class Encoded(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: the token ids.
        starts: returns the position in the text at which each token begins. It raises RowFault if
            the tokenizer cannot tell.
    """

    ids: list[int]
    starts: Callable[[], list[int]]

    def after(self, count: int) -> Encoded:
        """Return the tokens without the first `count`."""
        return Encoded(self.ids[count:], lambda: self.starts()[count:])

    def moved(self, by: int) -> Encoded:
        """Return the same tokens, of a text that stands `by` characters later in another."""
        return Encoded(self.ids, lambda: [start + by for start in self.starts()])


Encode = Callable[[str], Encoded]


class NotLiteralError(Exception):
    """Raised when a tokenizer cannot encode the name of a special token as text."""


class Encoder:
    """Encodes texts that have all of their special tokens written out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._special = special

    def many(self, texts: Sequence[str], **how: Any) -> list[Encoded]:
        """Encode many texts at once; fast tokenizers use all cores."""
        if not texts:
            return []
        # templates write their own special tokens, and BOS before plain text is added elsewhere
        found = self._tokenizer(list(texts), add_special_tokens=False, **how)
        return [
            Encoded(list(ids), partial(_starts, found, number))
            for number, ids in enumerate(found["input_ids"])
        ]

    def one(self, text: str) -> Encoded:
        """Encode one text."""
        return self.many([text])[0]

    def literal(self, text: str) -> Encoded:
        """Encode a text with hidden names, which become the text that was typed.

        The text is encoded in parts, between the special tokens of the template.

        Raises:
            NotLiteralError: the tokenizer encodes the parts differently from the whole, or makes
                special tokens of the names anyway.
        """
        pieces, names, read = [], [], 0
        for match in self._special.pattern.finditer(text):
            pieces.append(text[read : match.start()])
            names.append(match)
            read = match.end()
        pieces.append(text[read:])
        ids = [int(self._tokenizer.convert_tokens_to_ids(match[0])) for match in names]
        plain = self._split(pieces)
        if _joined([piece.ids for piece in plain], ids) != self.one(text).ids:
            raise NotLiteralError
        shown = [self._special.show(piece) for piece in pieces]
        found = self._split([piece for piece, _ in shown])
        if any(not self._special.ids.isdisjoint(piece.ids) for piece in found):
            raise NotLiteralError

        def starts() -> list[int]:
            begins = [0, *(match.end() for match in names)]
            inside = [
                [begin + places[start] for start in piece.starts()]
                for begin, piece, (_, places) in zip(begins, found, shown, strict=True)
            ]
            return _joined(inside, [match.start() for match in names])

        return Encoded(_joined([piece.ids for piece in found], ids), starts)

    def _split(self, pieces: list[str]) -> list[Encoded]:
        return self.many(pieces, split_special_tokens=True)


def inner(text: str, encode: Encode) -> Encoded:
    """Encode `text` without the space that SentencePiece adds in front."""
    line, found = encode("\n").ids, encode("\n" + text)
    if found.ids[: len(line)] == line:
        return found.after(len(line)).moved(-1)
    return encode(text)


def mask_of(starts: list[int], spans: list[tuple[int, int]]) -> bytes:
    """Return 1 for each token that begins in one of the spans, which are in order, and else 0."""
    begins = [begin for begin, _ in spans]
    found = bytearray()
    for start in starts:
        place = bisect_right(begins, start) - 1
        found.append(place >= 0 and start < spans[place][1])
    return bytes(found)


def _joined(pieces: list[list[int]], between: list[int]) -> list[int]:
    found = list(pieces[0])
    for one, piece in zip(between, pieces[1:], strict=True):
        found += [one, *piece]
    return found


def _starts(found: Any, number: int) -> list[int]:
    if found.encodings is None:
        raise RowFault(
            Reason.TEMPLATE_FAILED,
            None,
            "the response has tokens that the assistant does not write, which only a fast "
            "tokenizer (tokenizer.json) can tell apart",
        )
    starts, end = [], 0
    for begin, after in found.encodings[number].offsets:
        # some tokenizers leave the space before a word out of its offsets
        starts.append(min(begin, end))
        end = max(end, after)
    return starts
