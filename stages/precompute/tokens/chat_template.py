"""Messages -> text by the tokenizer's chat template, within limits; and what that text leaves out.

A template is a program of whoever made the checkpoint: it may not end, fill the memory, or drop
what it does not know.
"""

import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Remark
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message

Remarks = dict[Remark, str]
_SECONDS = 5.0  # of the processor, for one row; real templates take less than a millisecond
_MOST_CHARACTERS = 1 << 24  # of a text that is much longer than what it is made from
_PLAIN_ROLES = {"system", "user", "assistant", "tool"}
_REASONING = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """The chat template of a tokenizer, and what it does with messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        try:
            self._source = str(tokenizer.get_chat_template())
        except ValueError:  # there is none, or there are several and none is the default
            self._source = ""
        self._bos, self._eos = (str(t or "") for t in (tokenizer.bos_token, tokenizer.eos_token))
        names = {*tokenizer.all_special_tokens} | {
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        longest_first = sorted(filter(str.strip, names), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def is_there(self) -> bool:
        """Whether messages can be rendered at all."""
        return bool(self._source)

    def render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of `messages`.

        Raises:
            RowFault: the template refuses them, or a role is none that it knows.
            InputError: the template does not end, or writes without end.
        """
        if not self._source:
            raise RowFault(
                Reason.TEMPLATE_FAILED, "prompt", "messages, but the tokenizer has no chat template"
            )
        self._require_roles(messages)
        try:
            with _processor_time(_SECONDS):
                rendered = str(
                    self._tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=add_generation_prompt
                    )
                )
            rendered.encode("utf-8")  # half a surrogate pair in a role, say: no tokenizer takes it
        except _TooLongError as error:
            raise InputError(
                f"{self._tokenizer.name_or_path}: the chat template does not end: it ran for more "
                f"than {_SECONDS:g} seconds over one row. Use the template of the model's maker."
            ) from error
        except Exception as error:  # a template is a program and can raise anything
            why = str(error).strip() or type(error).__name__
            raise RowFault(
                Reason.TEMPLATE_FAILED, "prompt", f"the chat template refused the messages: {why}"
            ) from error
        if len(rendered) > _MOST_CHARACTERS and len(rendered) > 8 * len(str(messages)):
            raise InputError(
                f"{self._tokenizer.name_or_path}: the chat template writes {len(rendered):,} "
                "characters for one row. Use the template of the model's maker."
            )
        return rendered

    def remarks(self, messages: list[Message], rendered: str) -> Remarks:
        """What is worth knowing of `messages` and the text that holds them."""
        found = self.control_tokens(*(message["content"] for message in messages))
        for message in messages:
            if lost := self._lost(message, rendered):
                found.setdefault(Remark.TEMPLATE_DROPS, lost)
        if "strftime_now" in self._source:
            found[Remark.DATED_TEMPLATE] = ""
        return found

    def unused_fields(self, messages: list[Message]) -> Remarks:
        """Which fields of `messages` the template does not use, as far as its source tells."""
        known = {"role", "content", "tool_calls", *_REASONING}
        names = {name for message in messages for name in message} - known
        unused = sorted(name for name in names if not self._names(name))
        return {Remark.FIELDS_NOT_RENDERED: ", ".join(unused)} if unused else {}

    def control_tokens(self, *texts: str) -> Remarks:
        """Whether texts hold names of special tokens, but for a BOS or EOS where it belongs."""
        for said in texts:
            inner = said.removeprefix(self._bos).removesuffix(self._eos)
            if match := self._special.search(inner):
                return {Remark.CONTROL_TOKENS: match[0]}
        return {}

    def _require_roles(self, messages: list[Message]) -> None:
        """A template that does not know a role may write its name as it stands."""
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

    def _names(self, field: str) -> bool:
        return re.search(rf"\b{re.escape(field)}\b", self._source) is not None

    def _lost(self, message: Message, whole: str) -> str:
        """What of a message is not in the text."""
        role = message["role"]
        if message["content"].strip() not in whole:
            return f"the content of the {role} message, or a part of it"
        for name in _REASONING:
            said = message.get(name)
            if said and (not self._names(name) or str(said).strip() not in whole):
                return f"{name} of the {role} message"
        calls = message.get("tool_calls")
        leaves = (leaf in whole or _escaped(leaf) in whole for leaf in _leaves(calls))
        if calls and not (self._names("tool_calls") and all(leaves)):
            return f"tool_calls of the {role} message"
        return ""


def _leaves(calls: Any) -> Iterator[str]:
    """The names and the texts among the arguments of tool calls."""
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield str(function.get("name", ""))
            arguments = function.get("arguments")
            values = arguments.values() if isinstance(arguments, Mapping) else []
            yield from (value for value in values if isinstance(value, str))


def _escaped(said: str) -> str:
    """A text as it stands inside JSON."""
    return json.dumps(said, ensure_ascii=False)[1:-1]


class _TooLongError(Exception):
    """The time is up."""


@contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Raise _TooLongError in the block once it has taken so much of the processor's time.

    Only the main thread can be interrupted; in others there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    earlier = signal.signal(signal.SIGVTALRM, stop)
    # again each second: a template can catch what is raised
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
