"""Messages -> text by the tokenizer's chat template, and remarks on what the text leaves out.

A template is an untrusted program that comes with the checkpoint. It can run forever, fill the
memory, or drop fields that it does not know, so its time and output are limited.
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
_SECONDS = 5.0  # of CPU time for one row; real templates take less than a millisecond
_MOST_CHARACTERS = 1 << 24  # of a rendered text much longer than its messages
_PLAIN_ROLES = {"system", "user", "assistant", "tool"}
_REASONING = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        try:
            self._source = str(tokenizer.get_chat_template())
        except ValueError:  # there is none, or several without a default
            self._source = ""
        self._bos, self._eos = (str(t or "") for t in (tokenizer.bos_token, tokenizer.eos_token))
        names = {*tokenizer.all_special_tokens} | {
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        longest_first = sorted(filter(str.strip, names), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def is_there(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._source)

    def render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """Render `messages` as text.

        Raises:
            RowFault: the template rejects the messages, or does not know one of the roles.
            InputError: the template runs for too long, or writes too much.
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
            rendered.encode("utf-8")  # tokenizers reject half a surrogate pair, e.g. in a role
        except _TooLongError as error:
            raise InputError(
                f"{self._tokenizer.name_or_path}: the chat template does not end: it ran for more "
                f"than {_SECONDS:g} seconds on one row. Use the original model's template."
            ) from error
        except Exception as error:  # a template is a program and can raise anything
            why = str(error).strip() or type(error).__name__
            raise RowFault(
                Reason.TEMPLATE_FAILED, "prompt", f"the chat template refused the messages: {why}"
            ) from error
        if len(rendered) > _MOST_CHARACTERS and len(rendered) > 8 * len(str(messages)):
            raise InputError(
                f"{self._tokenizer.name_or_path}: the chat template writes {len(rendered):,} "
                "characters for one row. Use the original model's template."
            )
        return rendered

    def remarks(self, messages: list[Message], rendered: str) -> Remarks:
        """Return remarks on `messages` and the text rendered from them."""
        found = self.control_tokens(*(message["content"] for message in messages))
        for message in messages:
            if lost := self._lost(message, rendered):
                found.setdefault(Remark.TEMPLATE_DROPS, lost)
        if "strftime_now" in self._source:
            found[Remark.DATED_TEMPLATE] = ""
        return found

    def unused_fields(self, messages: list[Message]) -> Remarks:
        """Return a remark on the fields of `messages` that the template's source never names."""
        known = {"role", "content", "tool_calls", *_REASONING}
        names = {name for message in messages for name in message} - known
        unused = sorted(name for name in names if not self._names(name))
        return {Remark.FIELDS_NOT_RENDERED: ", ".join(unused)} if unused else {}

    def control_tokens(self, *texts: str) -> Remarks:
        """Return a remark if a text contains special tokens, other than BOS first or EOS last."""
        for said in texts:
            inner = said.removeprefix(self._bos).removesuffix(self._eos)
            if match := self._special.search(inner):
                return {Remark.CONTROL_TOKENS: match[0]}
        return {}

    def _require_roles(self, messages: list[Message]) -> None:
        """Reject roles that the template does not know and would write into the text.

        Raises:
            RowFault: a role is unknown.
        """
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
        """Describe the first part of a message that the text lacks; empty if it lacks none."""
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
    """Yield the function names and the text arguments of tool calls."""
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield str(function.get("name", ""))
            arguments = function.get("arguments")
            values = arguments.values() if isinstance(arguments, Mapping) else []
            yield from (value for value in values if isinstance(value, str))


def _escaped(said: str) -> str:
    """Return a text as it is escaped inside JSON."""
    return json.dumps(said, ensure_ascii=False)[1:-1]


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
