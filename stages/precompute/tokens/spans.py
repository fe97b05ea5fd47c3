"""The parts of a rendered conversation that the assistant writes in its response.

Templates with `{% generation %}` mark these parts themselves. For others, each message is rendered
with the messages before it. What the template writes after the generation prompt is the message,
and it is looked up in the whole. There it can have lost a thought, because some templates leave
thoughts out once a turn follows.
"""

from collections.abc import Callable, Iterator
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

    Raises:
        RowFault: the template writes a message differently once others follow it.
    """
    own, start = response.messages, len(response.before)
    agrees = response.whole.startswith(response.before)
    if agrees and all(is_written(m) for m in own if m["role"] == "assistant"):
        return [(max(begin, start), end) for begin, end in marked if end > start]
    numbers = [n for n, m in enumerate(own) if m["role"] == "assistant"]
    texts = [response.whole[begin:end] for begin, end in marked]
    # a template can mark the end of every text, which is no part of the texts that go on
    counts = [Prefix.similarity(texts, marked_before(number)) for number in numbers]
    counts.append(len(marked))
    if all(is_written(own[number]) for number in numbers):
        return marked[counts[0] :]
    found: list[Span] = []
    for number, (first, end) in zip(numbers, pairwise(counts), strict=True):
        if first >= end:  # a later message has changed what is marked in an earlier one
            raise _fault(response, number)
        if is_written(own[number]):
            found += marked[first:end]
    return [(max(begin, start if agrees else 0), end) for begin, end in found]


def spans_by_message(response: Response) -> list[Span] | None:
    """Return the spans of a response whose template marks nothing; None if it is one message.

    Raises:
        RowFault: the template writes a message differently once others follow it.
    """
    if len(response.messages) == 1 and response.opened and is_written(response.messages[0]):
        return None
    turns = _Turns(response)
    found: dict[int, Span] = {}
    last = 0
    for number in turns.numbers:
        span = turns.place(number, response.whole)
        if span is None or span[0] < last:
            raise _fault(response, number)
        found[number], last = span, span[1]
    if 0 in found and not response.whole.startswith(response.before):
        found[0] = 0, found[0][1]  # where the prompt diverges, the response begins
    return [found[number] for number in turns.numbers if is_written(response.messages[number])]


class _Turns:
    """The messages of the assistant in a response, each rendered with those before it."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._common = response.special.common
        self.numbers = [n for n, m in enumerate(response.messages) if m["role"] == "assistant"]
        self._places: dict[tuple[int, str], Span | None] = {}
        self._rendered: dict[tuple[int, bool], str] = {}

    def place(self, number: int, text: str) -> Span | None:
        """Return the span of message `number` in a text rendered from it and maybe more.

        None if the message is not there as it is when the messages before it are rendered alone.
        """
        key = number, text
        if key not in self._places:
            self._places[key] = self._search(number, text)
        return self._places[key]

    def _search(self, number: int, text: str) -> Span | None:
        found = self._start(number, text)
        if found is None:
            return None
        begin, reached = found
        for own in self._forms(number):
            if own == text:
                return begin, len(text)
            found = self._start(number, own)
            if found is None:
                continue
            start, least = found
            # of the generation prompt, the beginning of a thought can be gone, but no other message
            if reached < least and reached < len(self._render(number, opened=False)):
                continue
            length = _standing(own[start:], text, begin, self._response.special)
            if length is not None and not self._lacks(number, own[start:], text[begin:], length):
                return begin, begin + length
        return None

    def _start(self, number: int, text: str) -> tuple[int, int] | None:
        """Return where a message begins in a text, and up to where both agree in `_opened`."""
        opened = self._opened(number)
        if text.startswith(opened):
            return (self._common(opened, text),) * 2
        if number == self.numbers[0]:
            return self._common(opened, text), len(opened)
        *others, earlier = self.numbers[: self.numbers.index(number)]
        if (earlier, text) not in self._places:
            for other in others:  # from the first on, or calls would nest as deep as the response
                self.place(other, text)
        in_opened, in_text = self.place(earlier, opened), self.place(earlier, text)
        if in_opened is None or in_text is None:
            return None
        agree = self._common(opened[in_opened[1] :], text[in_text[1] :])
        return in_text[1] + agree, in_opened[1] + agree

    def _forms(self, number: int) -> Iterator[str]:
        """Yield the texts that end with a message: as the last one, and as others follow it.

        Some templates write the end of the last message, or of the text, in another way.
        """
        if number == len(self._response.messages) - 1:
            yield self._response.whole
            return
        yield self._render(number + 1, opened=False)
        try:
            followed = self._render(number + 1, opened=True)
            before, opened = (self._render(0, opened=opened) for opened in (False, True))
        except RowFault:
            return
        prompt = opened[self._common(before, opened) :]
        if prompt and followed.endswith(prompt):
            yield followed.removesuffix(prompt)

    def _opened(self, number: int) -> str:
        """Return the text up to where a message begins, as rendered without the message."""
        if number == 0 and self._response.opened:
            return self._response.before
        return self._render(number, opened=True)

    def _render(self, count: int, *, opened: bool) -> str:
        """Render the prompt with the first so many messages, with a generation prompt or not."""
        key = count, opened
        if key not in self._rendered:
            try:
                self._rendered[key] = self._response.render(count, opened)
            except RowFault as fault:
                field = self._response.field
                raise RowFault(
                    fault.reason,
                    field,
                    f"{fault.detail} (with the first {count} messages of {field!r})",
                ) from fault
        return self._rendered[key]

    def _lacks(self, number: int, own: str, text: str, length: int) -> bool:
        """Whether the first part of a text lacks a call or the content that the message has.

        Beside a call the content may be gone, which some templates take for a thought, but it must
        not stand after the part.
        """
        message = self._response.messages[number]
        said = message["content"].rpartition("</think>")[2].strip()
        called = list(words_of(message.get("tool_calls")))
        found, rest = text[:length], text[length:]
        if said in own and said not in found and (not called or said in rest):
            return True
        return any(word in own and word not in found for word in called)


def _fault(response: Response, number: int) -> RowFault:
    """Return the fault of a row of which message `number` cannot be placed."""
    return RowFault(
        Reason.TEMPLATE_FAILED,
        response.field,
        f"the chat template writes message {number} of {response.field!r} differently once others "
        "follow it, so the tokens that the assistant writes cannot be told apart",
    )


def _standing(own: str, text: str, begin: int, special: SpecialTokens) -> int | None:
    """Return the length at which `own` stands in `text` at `begin`, if need be without parts.

    It can lack its beginning, and what follows that part of it with which the text begins: as much
    as both have in common, or a token such as `</think>`. None if its end does not follow there.
    """
    agree = Prefix.similarity(own, text[begin : begin + len(own)])
    if agree == len(own):
        return agree
    name = special.added.match(text, begin)
    tries = [("", own), (own[:agree], own[agree:])]
    if name is not None:
        tries.append((name[0], own.partition(name[0])[2]))
    for first, rest in tries:
        at = _suffix(rest, text, begin + len(first))
        if at is not None:
            return len(first) + len(rest) - at
    return None


def _suffix(own: str, text: str, begin: int) -> int | None:
    """Return where the longest suffix of `own` begins that stands in `text` at `begin`."""
    first = text[begin : begin + 1]
    at = own.find(first) if first else -1
    while at >= 0 and not text.startswith(own[at:], begin):
        at = own.find(first, at + 1)
    return None if at < 0 else at
