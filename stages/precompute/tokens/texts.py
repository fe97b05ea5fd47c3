"""A preference -> the texts to tokenize, what of them the policy writes, and remarks on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Remark
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.chat_template import Arguments, ChatTemplate, Clock, Span
from reflogp.stages.precompute.tokens.remarks import Remarks, dropped, is_left_out, unused
from reflogp.stages.precompute.tokens.spans import (
    Response,
    is_written,
    marked_spans,
    spans_by_message,
)
from reflogp.stages.precompute.tokens.special_tokens import SpecialTokens
from reflogp.stages.precompute.tokens.templates import Templates


class Texts(NamedTuple):
    """What the tokens of a preference are made from.

    Attributes:
        texts: the prompt, and the prompt with each response.
        spans: for each response, the parts of its text that the policy writes; None if it writes
            all of the response.
        remarks: remarks on the row.
        typed: the name of a special token that a message other than the assistant's contains.
        literal: the same texts with such names hidden, to be encoded as the text that they are.
    """

    texts: list[str]
    spans: list[list[Span] | None]
    remarks: Remarks
    typed: str = ""
    literal: Texts | None = None


def texts_of(preference: Preference, templates: Templates) -> Texts:
    """Return the texts of a preference: plain text unchanged, messages rendered by the template.

    Raises:
        RowFault: the template cannot render the messages, or drops everything in a response.
    """
    if isinstance(preference.prompt, str):
        return _raw(preference.prompt, preference, templates)
    special = templates.special
    made = _rendered(preference, templates)
    typed = next(filter(None, map(special.pattern.search, _typed(preference))), None)
    if typed is None:
        return made
    literal = _rendered(_hidden(preference, special), templates)
    if [special.show(hidden)[0] for hidden in literal.texts] != made.texts:
        return made._replace(remarks=made.remarks | {Remark.CONTROL_TOKENS: typed[0]})
    # both have the remarks, of which tokenizing adds some
    return made._replace(typed=typed[0], literal=literal._replace(remarks=made.remarks))


def _raw(prompt: str, preference: Preference, templates: Templates) -> Texts:
    responses = [r for r in (preference.chosen, preference.rejected) if isinstance(r, str)]
    remarks = _control_tokens(templates.special, [prompt, *responses])
    if templates.there:
        remarks[Remark.TEXT_FOR_CHAT_MODEL] = ""
    whole = [prompt + response for response in responses]
    return Texts([prompt, *whole], [None] * len(whole), remarks)


def _rendered(preference: Preference, templates: Templates) -> Texts:
    chat = _Chat(preference, templates)
    before = chat.before(chat.prompt)
    other = preference.rejected_prompt
    if isinstance(other, list) and chat.before(other) != before:
        raise RowFault(
            Reason.PROMPTS_DIFFER,
            "chosen",
            "the two conversations differ before their last turn, as the template renders them",
        )
    template, special = chat.template, templates.special
    texts, spans, said = [before], [], list(chat.prompt)
    remarks = _control_tokens(special, _written(said)) | dropped(template, said, before)
    for field, response in chat.responses:
        whole, written = chat.whole(field, response, before, special)
        texts.append(whole)
        spans.append(written)
        said += response
        found = dropped(template, response, whole)
        gone = next(
            (m for m in response if is_left_out(template, m, whole) and is_written(m)), None
        )
        if gone is not None:
            what = "tool_calls" if gone.get("tool_calls") else "the reasoning"
            raise RowFault(
                Reason.EMPTY_RESPONSE,
                field,
                f"the chat template leaves out {what} of the assistant message, so the response is "
                "empty",
            )
        remarks = found | _control_tokens(special, _written(response)) | remarks
    remarks |= unused(template, said, chat.arguments) | chat.date()
    return Texts(texts, spans, remarks)


class _Chat:
    """The messages of one row, with the template and its arguments.

    Attributes:
        opened: whether the prompt is rendered up to where the assistant goes on: each response
            begins with a message of the assistant's.
    """

    def __init__(self, preference: Preference, templates: Templates) -> None:
        given = {"chosen": preference.chosen, "rejected": preference.rejected}
        self.prompt = list[Message](preference.prompt)  # type: ignore[arg-type]
        self.responses = [(name, r) for name, r in given.items() if isinstance(r, list)]
        self.opened = all(r[0]["role"] == "assistant" for _, r in self.responses)
        self.template: ChatTemplate = templates.choose(preference.tools)
        self.arguments: Arguments = self.template.with_clock(templates.arguments(preference))

    def before(self, prompt: list[Message]) -> str:
        """Render a prompt up to where the response begins."""
        continued = self._continued(prompt)
        return self.template.render(
            prompt,
            self.arguments,
            add_generation_prompt=self.opened and not continued,
            continue_final_message=continued,
        )

    def whole(
        self, field: str, response: list[Message], before: str, special: SpecialTokens
    ) -> tuple[str, list[Span] | None]:
        """Render the prompt with a response; also return what of it the policy writes."""
        messages = self._joined(response)
        marked: list[Span] = []
        if self.template.marks_responses:
            text, marked = self.template.render_marked(messages, self.arguments)
        else:
            text = self.template.render(messages, self.arguments)
        made = Response(field, response, before, self.opened, text, self._render(response), special)
        if not self.template.marks_responses:
            return text, spans_by_message(made)
        return text, marked_spans(made, marked, lambda count: self._marked(response[:count]))

    def date(self) -> Remarks:
        """Return a remark if the template has read the clock."""
        clock, name = self.arguments.get("strftime_now"), self.template.date_argument
        if not isinstance(clock, Clock) or not clock.was_read:
            return {}
        return {Remark.DATED_TEMPLATE: f"--template-kwargs {name}=... sets it" if name else ""}

    def _continued(self, prompt: list[Message]) -> bool:
        """Whether the response continues the last message of `prompt`."""
        last = prompt[-1]
        return (
            self.opened
            and last["role"] == "assistant"
            and bool(last["content"].strip())
            and not last.get("tool_calls")
        )

    def _joined(self, response: list[Message]) -> list[Message]:
        if not response or not self._continued(self.prompt):
            return self.prompt + response
        *earlier, last = self.prompt
        continued = last | response[0] | {"content": last["content"] + response[0]["content"]}
        return [*earlier, continued, *response[1:]]

    def _render(self, response: list[Message]) -> Callable[[int, bool], str]:
        def render(count: int, opened: bool) -> str:
            return self.template.render(
                self._joined(response[:count]), self.arguments, add_generation_prompt=opened
            )

        return render

    def _marked(self, beginning: list[Message]) -> list[str]:
        """Return the marked texts of the prompt with the beginning of a response."""
        messages = self._joined(beginning)
        if not beginning and self._continued(self.prompt):
            messages = messages[:-1]
        if not messages:
            return []
        text, spans = self.template.render_marked(messages, self.arguments)
        return [text[begin:end] for begin, end in spans]


def _control_tokens(special: SpecialTokens, texts: list[str]) -> Remarks:
    name = next(filter(None, map(special.first_in, texts)), None)
    return {Remark.CONTROL_TOKENS: name} if name else {}


def _written(messages: list[Message]) -> list[str]:
    """Return the texts of the assistant, which can write special tokens on purpose."""
    return [m["content"] for m in messages if m["role"] == "assistant"]


def _typed(preference: Preference) -> list[str]:
    """Return the texts of all others."""
    parts = (preference.prompt, preference.chosen, preference.rejected)
    lists = [part for part in parts if isinstance(part, list)]
    return [m["content"] for part in lists for m in part if m["role"] != "assistant"]


def _hidden(preference: Preference, special: SpecialTokens) -> Preference:
    """Hide the names of special tokens in messages that are not the assistant's."""

    def hidden(part: Any) -> Any:
        if not isinstance(part, list):
            return part
        return [
            m if m["role"] == "assistant" else m | {"content": special.hide(m["content"])}
            for m in part
        ]

    names = ("prompt", "chosen", "rejected", "rejected_prompt")
    return replace(preference, **{name: hidden(getattr(preference, name)) for name in names})
