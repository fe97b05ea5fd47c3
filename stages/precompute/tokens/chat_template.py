"""Messages -> text by a chat template.

A template is an untrusted program that comes with the checkpoint. It can run forever, fill the
memory, or drop fields that it does not know, so its time and output are limited.
"""

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from types import FrameType
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.one_message import TRAIN
from reflogp.stages.precompute.tokens.tool_calls import CallForm, form_of

Result = TypeVar("Result")
Span = tuple[int, int]
"""The first character of a part of a text, and the one after its last."""

Arguments = Mapping[str, Any]
"""What a template gets beside the messages: tools, enable_thinking, ..."""

_SECONDS = 5.0  # of CPU time for one row; real templates take less than a millisecond
_MOST_CHARACTERS = 1 << 24  # of a rendered text much longer than its messages
_PLAIN_ROLES = {"system", "user", "assistant", "tool"}
_CLOCK = "strftime_now"
_MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Clock:
    """The clock that templates read, which notices that it was read."""

    def __init__(self) -> None:
        self.was_read = False

    def __call__(self, form: str) -> str:
        """Return the current time in a form of strftime."""
        self.was_read = True
        return datetime.now().strftime(form)


class ChatTemplate:
    """One chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._named: dict[str, bool] = {}

    @cached_property
    def marks_responses(self) -> bool:
        """Whether the template marks what the assistant writes, with `{% generation %}`."""
        return _MARKERS.search(self._source) is not None

    @cached_property
    def date_argument(self) -> str | None:
        """The argument that sets the date in place of the clock, if there is one."""
        for name in re.findall(rf"(\w+)\s*=\s*{_CLOCK}\b", self._source):
            if re.search(rf"\b{name}\s+is\s+(not\s+)?defined\b", self._source):
                return str(name)
        return None

    def names(self, field: str) -> bool:
        """Whether the source has the name of a field or an argument."""
        if field not in self._named:
            self._named[field] = re.search(rf"\b{re.escape(field)}\b", self._source) is not None
        return self._named[field]

    def with_clock(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Add a clock to the arguments, if the template reads it."""
        return {_CLOCK: Clock(), **arguments} if self.names(_CLOCK) else arguments

    def render(
        self,
        messages: list[Message],
        arguments: Arguments,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """Render `messages` as text.

        Raises:
            RowFault: the template rejects the messages, or does not know one of the roles.
            InputError: the template runs for too long, or writes too much.
        """
        self._require_usable(messages)
        fitted = self._fitted(messages)
        return self._limited(messages, lambda: self._apply(
            fitted, arguments, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        ))  # fmt: skip

    def render_marked(
        self, messages: list[Message], arguments: Arguments
    ) -> tuple[str, list[Span]]:
        """Render `messages`; also return the parts that the template marks as the assistant's.

        Raises:
            RowFault: as `render`.
            InputError: as `render`.
        """
        self._require_usable(messages)
        fitted = self._fitted(messages)
        spans: list[Span] = []

        def rendered() -> str:
            texts, marked = render_jinja_template(
                conversations=[fitted],
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **arguments},
            )
            spans.extend(marked[0])
            return str(texts[0])

        return self._limited(messages, rendered), spans

    def _apply(self, messages: list[Message], arguments: Arguments, **how: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._source, tokenize=False, **how, **arguments
            )
        )

    @cached_property
    def _call_form(self) -> CallForm:
        def render(messages: list[Message]) -> str:
            return self._limited(messages, lambda: self._apply(messages, self.with_clock({})))

        return form_of(render)

    def _fitted(self, messages: list[Message]) -> list[Message]:
        """Return messages as the template takes them."""
        if not any(TRAIN in message or "tool_calls" in message for message in messages):
            return messages
        return [
            self._call_form.fit({k: v for k, v in message.items() if k != TRAIN})
            for message in messages
        ]

    def _limited(self, messages: list[Message], rendering: Callable[[], str]) -> str:
        """Render within the limits of time and size."""
        name = self._tokenizer.name_or_path
        try:
            with _processor_time(_SECONDS):
                rendered = rendering()
            rendered.encode("utf-8")  # tokenizers reject half a surrogate pair, e.g. in a role
        except _TooLongError as error:
            raise InputError(
                f"{name}: the chat template does not end: it ran for more than {_SECONDS:g} "
                "seconds on one row. Use the original model's template."
            ) from error
        except Exception as error:  # a template is a program and can raise anything
            why = str(error).strip() or type(error).__name__
            raise RowFault(
                Reason.TEMPLATE_FAILED, "prompt", f"the chat template refused the messages: {why}"
            ) from error
        if len(rendered) > _MOST_CHARACTERS and len(rendered) > 8 * len(str(messages)):
            raise InputError(
                f"{name}: the chat template writes {len(rendered):,} characters for one row. Use "
                "the original model's template."
            )
        return rendered

    def _require_usable(self, messages: list[Message]) -> None:
        """Reject roles that the template does not know and would write into the text.

        Raises:
            RowFault: a role is unknown, or there is no template.
        """
        if not self._source:
            raise RowFault(
                Reason.TEMPLATE_FAILED, "prompt", "messages, but the tokenizer has no chat template"
            )
        for message in messages:
            role = message["role"]
            if role not in _PLAIN_ROLES and not re.search(
                rf"""(['"]){re.escape(role)}\1""", self._source
            ):
                raise RowFault(
                    Reason.BAD_MESSAGES,
                    "prompt",
                    f"the chat template does not know the role {role!r}; use system, user, "
                    "assistant or tool",
                )


class _TooLongError(Exception):
    """Raised when the time limit has passed."""


@contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Raise _TooLongError in the block once it has used this much CPU time.

    Only the main thread can be interrupted; other threads have no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    earlier = signal.signal(signal.SIGVTALRM, stop)
    # repeats every second, because a template can catch the exception
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
