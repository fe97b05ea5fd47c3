"""The names of special tokens in texts, such as `<|im_end|>`.

A name that somebody typed is hidden while a template renders it: it becomes a number between two
characters of the private-use area. So typed names and those of the template stay apart.
"""

import re

from rapidfuzz.distance import Prefix
from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_HIDDEN = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class SpecialTokens:
    """The special tokens of a tokenizer.

    Attributes:
        pattern: matches the name of any of them, the longest first.
        added: matches these and the other added tokens, such as `<think>`.
        ids: their ids, without the one of unknown text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder.values()
        names = {*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)}
        self._names, self.pattern = _sorted(names)
        self._added, self.added = _sorted(names.union(map(str, added)))
        ids = map(tokenizer.convert_tokens_to_ids, self._names)
        self.ids = {int(number) for number in ids if number is not None} - {tokenizer.unk_token_id}
        self._bos, self._eos = (str(t or "") for t in (tokenizer.bos_token, tokenizer.eos_token))

    def first_in(self, text: str) -> str | None:
        """Return the first name in `text`, other than BOS at its beginning or EOS at its end."""
        match = self.pattern.search(text.removeprefix(self._bos).removesuffix(self._eos))
        return match and match[0]

    def common(self, left: str, right: str) -> int:
        """Return the length of the common beginning of two texts, which splits no name."""
        length = Prefix.similarity(left, right)
        longest = len(self._added[0]) if self._added else 0
        for text in (left, right):
            for match in self.added.finditer(text, max(length - longest, 0), length + longest):
                if match.start() >= length:
                    break
                if match.end() > length:
                    length = match.start()
        return length

    def hide(self, text: str) -> str:
        """Hide the names in `text`."""
        return self.pattern.sub(lambda m: f"{_OPEN}{self._names.index(m[0])}{_CLOSE}", text)

    def show(self, text: str) -> tuple[str, list[int]]:
        """Undo `hide`.

        Returns:
            The text with its names, and for each of its characters the position in `text`.
        """
        shown, places, read = [], list[int](), 0
        for match in _HIDDEN.finditer(text):
            number = int(match[1])
            name = self._names[number] if number < len(self._names) else match[0]
            shown += [text[read : match.start()], name]
            places += [*range(read, match.start()), *[match.start()] * len(name)]
            read = match.end()
        return "".join([*shown, text[read:]]), [*places, *range(read, len(text) + 1)]


def _sorted(names: set[str]) -> tuple[list[str], re.Pattern[str]]:
    """Return the names that are not blank, the longest first, and a pattern of them."""
    found = sorted(filter(str.strip, names), key=lambda name: (-len(name), name))
    return found, re.compile("|".join(map(re.escape, found)) or r"(?!)")
