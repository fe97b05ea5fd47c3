"""Two whole texts -> prompt, chosen and rejected. Neither text marks where the prompt ends.

The prompt of transcripts is everything up to the last assistant turn. The prompt of other texts is
their common beginning, up to the last end of a word in it, so both responses start with a whole
word. In scripts without spaces (Chinese, Japanese, Thai, ...), every character ends a word unless
a combining mark follows.
"""

import os
import re
import unicodedata

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Content, Message

TURN, _USER_TURN = "\n\nAssistant:", "\n\nHuman:"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_BEFORE_SPACE = re.compile(r"\S(?=\s+\S*\Z)")
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3001-\u30ff\u3105-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uffef\U00020000-\U0003ffff]"
)
_LEADING_VOWELS = set("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
_JOINER = "\u200d"


def is_transcript(chosen: str, rejected: str) -> bool:
    """Whether both texts are dialogues with marked turns, as in HH-RLHF."""
    return TURN in chosen and TURN in rejected


def as_chat(prompt: Content, *responses: Content) -> tuple[Content, ...]:
    """Return a prompt as messages, with its responses. A transcript becomes its turns."""
    if not isinstance(prompt, str):
        return prompt, *responses
    if TURN not in prompt:
        return [_message("user", prompt)], *responses
    turns = _turns(prompt)
    if not turns[-1]["content"]:  # the transcript ends with the name of who answers
        turns.pop()
    return turns, *(said.strip() if isinstance(said, str) else said for said in responses)


def as_conversations(chosen: str, rejected: str) -> tuple[list[Message], list[Message]]:
    """Return two texts that begin with the same prompt as conversations.

    Raises:
        RowFault: the texts have no common prompt.
    """
    if is_transcript(chosen, rejected):
        return _turns(chosen), _turns(rejected)
    prompt, *responses = map(str.strip, split_texts(chosen, rejected))
    asked = _message("user", prompt)
    good, bad = ([asked, _message("assistant", said)] for said in responses)
    return good, bad


def _turns(transcript: str) -> list[Message]:
    """Return the turns of a transcript. Text before the first one is a system message."""
    before, *rest = _SPEAKER.split(transcript)
    turns = [_message("system", before.strip())] if before.strip() else []
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return turns + [_message(_ROLES[speaker], said.strip()) for speaker, said in pairs]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts that begin with the same prompt into prompt, chosen and rejected.

    Raises:
        RowFault: the texts have no common prompt, or a dialogue does not end with the assistant.
    """
    if is_transcript(chosen, rejected):
        cut = _last_turn(chosen, rejected)
    else:
        cut = _common_words(chosen, rejected)
        if not cut:
            raise RowFault(
                Reason.EMPTY_PROMPT,
                "chosen",
                "there is no prompt: chosen and rejected do not begin with the same words; if "
                "another column is the prompt, name it: --columns prompt=NAME",
            )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _last_turn(chosen: str, rejected: str) -> int:
    cut = chosen.rindex(TURN) + len(TURN)
    if chosen[:cut] != rejected[: rejected.rindex(TURN) + len(TURN)]:
        raise RowFault(
            Reason.PROMPTS_DIFFER, "chosen", "the two dialogues differ before their last turn"
        )
    for field, response in (("chosen", chosen[cut:]), ("rejected", rejected[cut:])):
        if _USER_TURN in response:
            raise RowFault(
                Reason.BAD_MESSAGES, field, f"the dialogue in {field!r} ends with a user turn"
            )
    return cut


def _common_words(chosen: str, rejected: str) -> int:
    """Return the length in characters of the words that both texts begin with, or 0."""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of texts, not paths
    word = _BEFORE_SPACE.search(common)
    spaced = word.end() if word else 0
    # both responses must keep at least one character
    for cut in range(min(len(common), len(chosen) - 1, len(rejected) - 1), spaced, -1):
        if _WITHOUT_SPACES.match(common[cut - 1]) and not any(
            _belongs(text[cut - 1], text[cut]) for text in (chosen, rejected)
        ):
            return cut
    return spaced


def _belongs(before: str, after: str) -> bool:
    """Whether two adjacent characters must not be separated."""
    return (
        unicodedata.category(after).startswith("M")
        or after == _JOINER
        or before == _JOINER
        or before in _LEADING_VOWELS
    )
