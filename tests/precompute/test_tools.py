"""Tools and arguments of the chat template read the same however a row holds them."""

import json
from typing import Any

import pyarrow as pa
import pytest

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.forms import ReadRules
from reflogp.stages.precompute.read.preferences import detect, normalize
from reflogp.stages.precompute.read.tools import template_kwargs_of, tools_of
from tests.precompute.conftest import PAIR, assistant, user

TALK: dict[str, Any] = {
    "prompt": [user("Rain?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")],
}  # fmt: skip


def schema(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


RAIN = schema("rain", town={"type": "string", "enum": ["Oslo", "Rome"]})
WIND = schema("wind", day={"type": "integer"})


def through_arrow(value: Any) -> Any:
    """Return a value as Arrow gives it back: every object has the keys of all the others."""
    return pa.array([value]).to_pylist()[0]


@pytest.mark.parametrize(
    "tools",
    [
        [RAIN, WIND],
        json.dumps([RAIN, WIND]),
        repr([RAIN, WIND]),
        [json.dumps(RAIN), json.dumps(WIND)],
        through_arrow([RAIN, WIND]),
        {key: [tool[key] for tool in (RAIN, WIND)] for key in RAIN},
    ],
)
def test_tools_are_a_list_of_schemas_however_they_are_written(tools):
    assert tools_of({"tools": tools}) == [RAIN, WIND]


def test_arrow_fills_schemas_with_nulls():
    assert through_arrow([RAIN, WIND]) != [RAIN, WIND]


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        (RAIN, [RAIN]),
        (json.dumps(RAIN), [RAIN]),
        ([RAIN["function"]], [RAIN["function"]]),
        ([{"type": "code_interpreter"}], [{"type": "code_interpreter"}]),
        (None, None), ([], None), ("", None), ("[]", None), ("null", None), ([None], None),
        (float("nan"), None), ({"function": None}, None),
    ],
)  # fmt: skip
def test_one_tool_and_no_tool(tools, found):
    assert tools_of({"tools": tools}) == found
    assert tools_of({}) is None


@pytest.mark.parametrize(
    "tools",
    [
        "rain", "[{", [{"type": "function"}], [{"description": "rain"}], [RAIN, "wind"], [1], 1,
        [{"type": "function", "function": "rain"}], [{"type": "function", "function": {"name": 1}}],
    ],
)  # fmt: skip
def test_other_tools_are_quarantined_by_name(tools):
    with pytest.raises(RowFault, match="'tools'") as caught:
        tools_of({"tools": tools})
    assert (caught.value.reason, caught.value.field) == (Reason.WRONG_TYPE, "tools")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"enable_thinking": True, "effort": None}, {"enable_thinking": True}),
        (None, None), ({}, None), ("{}", None), ("", None), ({"effort": None}, None),
    ],
)  # fmt: skip
def test_arguments_of_the_template_are_an_object(given, found):
    assert template_kwargs_of({"chat_template_kwargs": given}) == found
    assert template_kwargs_of({}) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("enable_thinking", Reason.WRONG_TYPE),
        (["enable_thinking"], Reason.WRONG_TYPE),
        (1, Reason.WRONG_TYPE),
        ({"chat_template": "{{ 1 }}"}, Reason.UNSUPPORTED),
        ({"add_generation_prompt": True}, Reason.UNSUPPORTED),
        ({"tools": [RAIN]}, Reason.UNSUPPORTED),
    ],
)
def test_other_arguments_of_the_template_are_quarantined_by_name(given, reason):
    with pytest.raises(RowFault, match="'chat_template_kwargs'") as caught:
        template_kwargs_of({"chat_template_kwargs": given})
    assert (caught.value.reason, caught.value.field) == (reason, "chat_template_kwargs")


def read(row: dict[str, Any], *, as_chat: bool = False) -> Any:
    form = detect(set(row))
    assert form is not None
    return normalize(row, form, 0, ReadRules(as_chat=as_chat))


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_plain_text_takes_none_of_them(name):
    given = {"tools": [RAIN], "chat_template_kwargs": {"short": True}}
    with pytest.raises(RowFault, match="--as-chat") as caught:
        read(PAIR | {name: given[name]})
    assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, name)
    for found in (read(TALK | given), read(PAIR | given, as_chat=True)):
        assert (found.tools, found.template_kwargs) == tuple(given.values())
    assert read(PAIR | dict.fromkeys(given)).tools is None
