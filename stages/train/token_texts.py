"""Token ids -> the text of each token, such that joining gives the decoded text."""

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"  # what decoding gives for part of a character's bytes


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text.

    A token decoded alone may lose its space, or be half a character. So it is decoded after the one
    before it, and what that one gives is taken off; a character of several tokens stands with the
    last of them, and the others have an empty text.

    Args:
        tokenizer: a transformers tokenizer.
        ids: token ids, special ones included.
    """
    texts, start, read = [], 0, 0
    known = ""  # the text of ids[start:read]
    for end in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[start:end])
        if text.endswith(_INCOMPLETE) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(known) :])
        start, read = read, end
        known = _decoded(tokenizer, ids[start:read])
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(  # type: ignore[no-any-return]
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
