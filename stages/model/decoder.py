"""Token ids -> text for people, with the tokenizer of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from reflogp.stages.model.loading import load_saved_tokenizer

_INCOMPLETE = "\ufffd"  # a tokenizer decodes an incomplete character to this


class Decoder:
    """Decodes token ids; special tokens are part of the text.

    Attributes:
        special: the ids of special tokens.
    """

    special: frozenset[int]

    def __init__(self, folder: Path, *, trusted: bool = False) -> None:
        """Load the tokenizer in `folder`, with its own code if it is `trusted`.

        Raises:
            InputError: it cannot be loaded.
        """
        self._tokenizer = load_saved_tokenizer(folder, trusted=trusted)
        added = self._tokenizer.added_tokens_decoder
        marked = {number for number, token in added.items() if token.special}
        self.special = frozenset(marked | {*self._tokenizer.all_special_ids})

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of all tokens."""
        return self._tokenizer.decode(  # type: ignore[no-any-return]
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds.

        A token decoded alone can lose its space, or be half a character. Each token is therefore
        decoded together with the previous one, whose text is then removed. A character of several
        tokens belongs to the last of them; the others have an empty text.
        """
        texts, start, read = [], 0, 0
        known = ""  # the text of ids[start:read]
        for end in range(1, len(ids) + 1):
            text = self.text(ids[start:end])
            if text.endswith(_INCOMPLETE) and end < len(ids):
                texts.append("")
                continue
            texts.append(text[len(known) :])
            start, read = read, end
            known = self.text(ids[start:read])
        return texts
