"""The form in which a chat template takes the calls of tools, found by rendering a probe.

The arguments of a call can be an object or JSON text, and beside a call the content can be empty
text or null. Templates differ in which of them they write as the model would.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message

_NAME, _KEY, _VALUE = "probe_name", "probe_key", "probe value"
_ARGUMENTS = {_KEY: _VALUE}
_ID = "probe0001"  # nine letters and digits, as Mistral's templates require


class CallForm(NamedTuple):
    """What a template takes.

    Attributes:
        objects: arguments as an object.
        texts: arguments as JSON text.
        null_content: calls are rendered only if the content is null.
    """

    objects: bool
    texts: bool
    null_content: bool

    def fit(self, message: Message) -> Message:
        """Return a message with its calls as the template takes them."""
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or not calls:
            return message
        fitted = message | {"tool_calls": [self._call(call) for call in calls]}
        if self.null_content and not message["content"].strip():
            fitted["content"] = None
        return fitted

    def _call(self, call: Any) -> Any:
        function = function_of(call)
        if function is None or "arguments" not in function:
            return call
        function = {**function, "arguments": self._arguments(function["arguments"])}
        return {**call, "function": function} if "function" in call else function

    def _arguments(self, given: Any) -> Any:
        if isinstance(given, str) and self.objects and not self.texts:
            return _object(given)
        if not isinstance(given, str) and self.texts and not self.objects:
            return json.dumps(given, ensure_ascii=False)
        return given


def form_of(render: Callable[[list[Message]], str]) -> CallForm:
    """Return the form of tool calls that a template takes; `render` renders messages with it."""

    def rendered(arguments: Any, content: str | None) -> str:
        function = {"name": _NAME, "arguments": arguments}
        call = {"id": _ID, "type": "function", "function": function}
        asked: Message = {"role": "user", "content": "a"}
        try:
            return render([asked, {"role": "assistant", "content": content, "tool_calls": [call]}])
        except RowFault:
            return ""

    for content in ("", None):
        written = rendered(_ARGUMENTS, content)
        # a Python dict with its quotes is an accident, not what a model writes
        objects = _KEY in written and _VALUE in written and repr(_KEY) not in written
        texts = json.dumps(_ARGUMENTS) in rendered(json.dumps(_ARGUMENTS), content)
        if objects or texts:
            return CallForm(objects, texts, null_content=content is None)
    return CallForm(objects=False, texts=False, null_content=False)


def function_of(call: Any) -> Mapping[str, Any] | None:
    """Return the function of a call, which has its name and arguments."""
    found = call.get("function", call) if isinstance(call, Mapping) else None
    return found if isinstance(found, Mapping) else None


def words_of(calls: Any) -> Iterator[str]:
    """Yield the function names and the text arguments of tool calls."""
    for call in calls if isinstance(calls, list) else []:
        if (function := function_of(call)) is not None:
            yield str(function.get("name", ""))
            arguments = function.get("arguments")
            values = arguments.values() if isinstance(arguments, Mapping) else []
            yield from (value for value in values if isinstance(value, str))


def _object(text: str) -> Any:
    """Parse JSON text; text that is no object stays as it is."""
    try:
        found = json.loads(text.strip() or "{}")
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text
