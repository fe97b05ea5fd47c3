"""The parts of a rendered conversation that the assistant writes in its response.

Templates with `{% generation %}` mark these parts themselves. For others, each message is rendered
with the messages before it. What the template writes after the generation prompt is the message,
and it is looked up in the whole. There it can have lost a thought, because some templates leave
thoughts out once a turn follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from rapidfuzz.distance import Prefix

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.one_message import TRAIN
from reflogp.stages.precompute.tokens.chat_template import Span
from reflogp.stages.precompute.tokens.special_tokens import SpecialTokens
from reflogp.stages.precompute.tokens.tool_calls import words_of


@dataclass(frozen=True)
class Response:
    """A response and the texts that it is rendered to.

    Attributes:
        field: its column.
        messages: at least one; the assistant writes the last.
        before: the prompt as rendered, up to where the response begins.
        opened: whether `before` ends with a generation prompt, or inside a message to continue.
        whole: prompt and response as rendered.
        render: renders the prompt with the first so many messages, with a generation prompt or not.
        special: the tokenizer's special tokens.
    """

    field: str
    messages: list[Message]
    before: str
    opened: bool
    whole: str
    render: Callable[[int, bool], str]
    special: SpecialTokens


def is_written(message: Message) -> bool:
    """Whether a message of a response is the assistant's, and is trained."""
    return message["role"] == "assistant" and bool(message.get(TRAIN, True))


def marked_spans(
    response: Response, marked: list[Span], marked_before: Callable[[int], list[str]]
) -> list[Span]:
    """Return the spans of a response that the template has marked.

    Args:
        response: the response.
        marked: all spans that the template marks in the whole, those of the prompt included.
        marked_before: returns the marked texts of the prompt with the first so many messages.
    """
    own, start = response.messages, len(response.before)
    agrees = response.whole.startswith(response.before)
    if agrees and all(is_written(m) for m in own if m["role"] == "assistant"):
        return [(max(begin, start), end) for begin, end in marked if end > start]
    texts = [response.whole[begin:end] for begin, end in marked]
    # a template can mark the end of every text, which is no part of the texts that go on
    shared = [Prefix.similarity(texts, marked_before(number)) for number in range(len(own))]
    counts = [*shared, len(marked)]
    return [
        (max(begin, start if agrees else 0), end)
        for number, message in enumerate(own)
        if is_written(message)
        for begin, end in marked[counts[number] : counts[number + 1]]
    ]


def spans_by_message(response: Response) -> list[Span] | None:
    """Return the spans of a response whose template marks nothing; None if it is one message.

    Raises:
        RowFault: the template writes a message differently once others follow it.
    """
    if len(response.messages) == 1 and response.opened and is_written(response.messages[0]):
        return None
    turns = _Turns(response)
    found = {number: turns.place(number, response.whole) for number in turns.numbers}
    for earlier, number in pairwise(turns.numbers):
        if found[number][0] < found[earlier][1]:
            raise turns.fault(number)
    if 0 in found and not response.whole.startswith(response.before):
        found[0] = 0, found[0][1]  # where the prompt diverges, the response begins
    return [found[number] for number in turns.numbers if is_written(response.messages[number])]


class _Turns:
    """The messages of the assistant in a response, each rendered with those before it."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.numbers = [n for n, m in enumerate(response.messages) if m["role"] == "assistant"]
        self._texts = {n: self._upto(n) for n in self.numbers}
        self._starts = {n: self._start(n) for n in self.numbers}

    def place(self, number: int, text: str) -> Span:
        """Return the span of message `number` in a text rendered from it and maybe more."""
        own, start = self._texts[number], self._starts[number]
        begin = start
        if not text.startswith(own[:start]):
            begin = self._after_earlier(number, text)
        if text == own:
            return begin, len(text)
        length = _standing(own[start:], text, begin)
        if length is None:  # the template can end every text, as with EOS, and no turn within one
            closed = self._response.special.common(own, self._response.render(number + 1, True))
            length = _standing(own[start:closed], text, begin)
        if length is None or self._lacks(number, own[start:], text[begin : begin + length]):
            raise self.fault(number)
        return begin, begin + length

    def _after_earlier(self, number: int, text: str) -> int:
        """Return where a message begins in a text that renders the messages before it otherwise."""
        own, start = self._texts[number], self._starts[number]
        if number == self.numbers[0]:
            return self._response.special.common(own[:start], text)
        earlier = self.numbers[self.numbers.index(number) - 1]
        after = self.place(earlier, own)[1]
        begin = self.place(earlier, text)[1]
        agree = self._response.special.common(own[after:start], text[begin:])
        # of the generation prompt, the beginning of a thought can be gone, but no other message
        if after + agree < start and after + agree < len(self._render(number, number, False)):
            raise self.fault(number)
        return begin + agree

    def _upto(self, number: int) -> str:
        if number == len(self._response.messages) - 1:
            return self._response.whole
        return self._render(number, number + 1, False)

    def _start(self, number: int) -> int:
        """Return where a message begins in its own text: behind the generation prompt."""
        if number == 0 and self._response.opened:
            opened = self._response.before
        else:
            opened = self._render(number, number, True)
        return self._response.special.common(opened, self._texts[number])

    def _render(self, number: int, count: int, opened: bool) -> str:
        try:
            return self._response.render(count, opened)
        except RowFault as fault:
            raise RowFault(
                fault.reason,
                self._response.field,
                f"{fault.detail} (up to message {number} of {self._response.field!r})",
            ) from fault

    def _lacks(self, number: int, own: str, found: str) -> bool:
        """Whether the part that was found lacks content or a call that the message has."""
        message = self._response.messages[number]
        said = message["content"].rpartition("</think>")[2].strip()
        return any(
            word in own and word not in found
            for word in (said, *words_of(message.get("tool_calls")))
        )

    def fault(self, number: int) -> RowFault:
        """Return the fault of a row of which message `number` cannot be placed."""
        field = self._response.field
        return RowFault(
            Reason.TEMPLATE_FAILED,
            field,
            f"the chat template writes message {number} of {field!r} differently once others "
            "follow it, so the tokens that the assistant writes cannot be told apart",
        )


def _standing(own: str, text: str, begin: int) -> int | None:
    """Return the length at which `own` stands in `text` at `begin`, if need be without a part.

    The part is the first one with which the rest stands there: at the beginning of `own`, or where
    `own` and the text begin to differ. None if the rest stands in neither place.
    """
    for agree in (0, Prefix.similarity(own, text[begin : begin + len(own)])):
        if agree == len(own):
            return agree
        at = _suffix(own[agree:], text, begin + agree)
        if at is not None:
            return len(own) - at
    return None


def _suffix(own: str, text: str, begin: int) -> int | None:
    """Return where the longest suffix of `own` begins that stands in `text` at `begin`."""
    first = text[begin : begin + 1]
    at = own.find(first) if first else -1
    while at >= 0 and not text.startswith(own[at:], begin):
        at = own.find(first, at + 1)
    return None if at < 0 else at
