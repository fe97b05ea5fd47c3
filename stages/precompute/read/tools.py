"""The columns `tools` and `chat_template_kwargs` of a raw row, which the chat template gets."""

from collections.abc import Mapping
from typing import Any

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.fields import is_blank, listed, parsed, without_nulls

TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"
OWN_ARGUMENTS = {
    "conversation", "messages", TOOLS, "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""Arguments of `apply_chat_template` that are not the template's, so no data can set them."""


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the JSON schemas of the tools that a row offers; None if there are none.

    Raises:
        RowFault: they are not a list of schemas, or JSON text of one.
    """
    tools = listed(_value(row, TOOLS))
    if tools is None:
        return None
    if isinstance(tools, list):
        tools = [_value({TOOLS: tool}, TOOLS) for tool in tools]
    if not isinstance(tools, list) or not all(map(_is_schema, tools)):
        raise RowFault(
            Reason.WRONG_TYPE,
            TOOLS,
            f"{TOOLS!r} must be a list of JSON schemas of functions, each with a name",
        )
    return tools


def template_kwargs_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of the chat template that a row sets; None if it sets none.

    Raises:
        RowFault: they are not an object, or name an argument that is not the template's.
    """
    given = _value(row, TEMPLATE_KWARGS)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise RowFault(
            Reason.WRONG_TYPE,
            TEMPLATE_KWARGS,
            f"{TEMPLATE_KWARGS!r} must be an object, such as {{'enable_thinking': false}}",
        )
    if own := sorted(OWN_ARGUMENTS.intersection(given)):
        raise RowFault(
            Reason.UNSUPPORTED,
            TEMPLATE_KWARGS,
            f"{TEMPLATE_KWARGS!r} sets {', '.join(own)}, which is not an argument of a template",
        )
    return given


def _value(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, which can be JSON text; None if it has no content."""
    value = row.get(name)
    try:
        if is_blank(value):
            return None
        return without_nulls(parsed(value) if isinstance(value, str) else value)
    except (ValueError, RecursionError) as error:
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is text, but not JSON") from error


def _is_schema(tool: Any) -> bool:
    """Whether a tool is a function with a name, or of a kind that the template has built in."""
    if not isinstance(tool, Mapping):
        return False
    function = tool.get("function", tool)
    named = isinstance(function, Mapping) and isinstance(function.get("name"), str)
    return named or tool.get("type", "function") != "function"
