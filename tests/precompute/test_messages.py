"""Messages read the same however they are written down; nulls and ids make no difference."""

import json
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import content
from reflogp.stages.precompute.read.preferences import detect, normalize
from tests.precompute.conftest import assistant, save, system, user

TURNS = [system("Be brief."), user("Where?"), assistant("Here.")]
CALL = {"type": "function", "function": {"name": "seek", "arguments": {"what": "keys"}}}
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": plain_text}
    ),
    min_size=1,
    max_size=4,
)


@given(turns=turns, write=st.sampled_from([json.dumps, repr, lambda x: json.dumps(x, indent=1)]))
@settings(max_examples=100)
def test_messages_written_as_text_are_messages(turns, write):
    assert content({"prompt": write(turns)}, "prompt") == turns
    assert content({"prompt": write(turns[0])}, "prompt") == turns[:1]


@pytest.mark.parametrize(
    "text",
    [
        "plain", "[1, 2]", "[]", "{}", '{"name": "x"}', '[{"name": "x", "content": "y"}]',
        '["role", "content"]', '[{"role": "user"}]', "[{'role': 'user'",
        '{"role": 5, "content": 6}',
    ],
)  # fmt: skip
def test_other_text_stays_text(text):
    assert content({"prompt": text}, "prompt") == text


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",  # NumPy's
        "{'role': 'user', {}: 1}",
        "{'role': 'user', 'content': open('a')}",
        "{'role': " + "[" * 5_000 + "}",
    ],
)
def test_text_that_looks_like_messages_and_cannot_be_read_is_refused(text):
    with pytest.raises(RowFault, match="neither JSON nor a Python literal") as caught:
        content({"prompt": text}, "prompt")
    assert caught.value.reason is Reason.BAD_MESSAGES


def test_a_table_that_pandas_saved_reads_as_the_lines_it_was_made_from(load, tmp_path):
    row = {"prompt": TURNS[:2], "chosen": TURNS[2:], "rejected": [assistant("There.")]}
    pd.DataFrame([row]).to_csv(tmp_path / "a.csv", index=False)
    lines = load(save(tmp_path / "a.jsonl", [row]))
    assert load(tmp_path / "a.csv").rows == lines.rows
    assert len(lines.rows) == 1


@pytest.mark.parametrize("said", [None, "", "absent"])
def test_a_turn_that_only_calls_a_tool_needs_no_content(said):
    message: dict[str, Any] = {"role": "assistant", "content": said, "tool_calls": [CALL]}
    if said == "absent":
        del message["content"]
    assert content({"prompt": [message]}, "prompt") == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]}
    ]


def one(message: Any) -> dict[str, Any]:
    """Read one message of a prompt."""
    found = content({"prompt": [message]}, "prompt")
    assert isinstance(found, list)
    return found[0]


@pytest.mark.parametrize(
    "said",
    [
        [{"type": "text", "text": "Hi. "}, {"type": "text", "value": "Ho."}],
        [{"type": "input_text", "content": "Hi. Ho."}],
        [{"type": "text", "text": "Hi. Ho.", "image": None}, {"type": "text", "text": ""}],
        {"type": "text", "text": "Hi. Ho."},
        {"type": ["text", "text"], "text": ["Hi. ", "Ho."]},
    ],
)
def test_parts_of_text_are_joined(said):
    assert one({"role": "user", "content": said}) == user("Hi. Ho.")


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video", "thinking"])
def test_other_parts_are_refused_by_their_type(kind):
    said = [{"type": "text", "text": "What is it?"}, {"type": kind, kind: "a.png"}]
    with pytest.raises(RowFault, match=f"message 1 of 'prompt' has a part of type '{kind}'") as why:
        content({"prompt": [user("Hi."), {"role": "user", "content": said}]}, "prompt")
    assert (why.value.reason, why.value.field) == (Reason.UNSUPPORTED, "prompt")
    assert "reflogp scores text" in why.value.detail


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
        {"role": "user", "content": ["Hi."]},
        {"role": "user", "content": {"degrees": 3}},
        {"role": "user", "content": 3},
        {"role": "user"},
        {"role": None, "content": "Hi."},
        {"content": "Hi."},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "tool_calls": "seek(keys)"},
        {"role": "assistant", "tool_calls": [{"arguments": {}}]},
        {"role": "assistant", "tool_calls": ["seek"]},
        {"role": "function_call", "content": "seek(keys)"},
        {"role": "function_call", "content": '{"arguments": {}}'},
        {"role": "function_call", "content": ""},
        {"role": "function_call"},
        user("Hi.") | {"weight": 0.5},
        user("Hi.") | {"train": "no"},
        user("Hi.") | {"loss_weight": [0]},
    ],
)
def test_a_message_that_is_not_one_is_refused(message):
    with pytest.raises(RowFault, match="message 0 of 'prompt'") as caught:
        one(message)
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_MESSAGES, "prompt")


@pytest.mark.parametrize(
    "calls",
    [[CALL], CALL, json.dumps([CALL]), json.dumps(CALL), repr([CALL]),
     {key: [value] for key, value in CALL.items()}],
)  # fmt: skip
def test_tool_calls_are_a_list_however_they_are_written(calls):
    said = one({"role": "assistant", "content": "So.", "tool_calls": calls})
    assert said == assistant("So.") | {"tool_calls": [CALL]}


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null", [None], [{"function": None}]])
def test_empty_tool_calls_are_none(nothing):
    assert one(assistant("So.") | {"tool_calls": nothing}) == assistant("So.")


def test_arguments_of_a_call_stay_as_they_are():
    for arguments in ({"what": "keys"}, '{"what": null}', "", [2, 2]):
        call = {"type": "function", "function": {"name": "seek", "arguments": arguments}}
        assert one(assistant("") | {"tool_calls": [call]})["tool_calls"] == [call]
        assert one(assistant("") | {"tool_calls": json.dumps([call])})["tool_calls"] == [call]


@pytest.mark.parametrize("role", ["function_call", "Function_Call", "tool_call"])
@pytest.mark.parametrize(
    "said",
    [json.dumps(CALL["function"]), json.dumps([CALL["function"]]), json.dumps(CALL), [CALL],
     CALL["function"]],
)  # fmt: skip
def test_a_tool_call_of_sharegpt_is_an_assistant_message_that_calls(role, said):
    assert one({"from": role, "value": said}) == assistant("") | {"tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("observation", "tool"), ("function_response", "tool"), ("Tool_Response", "tool"),
        ("USER", "user"), ("Developer", "developer"), ("ipython", "tool"), ("Bard", "Bard"),
    ],
)  # fmt: skip
def test_names_of_roles_in_any_case(name, role):
    assert one({"from": name, "value": "4"}) == {"role": role, "content": "4"}


@pytest.mark.parametrize("name", ["weight", "loss_weight", "train", "training"])
def test_a_weight_of_nought_makes_a_message_context(name):
    for zero in (0, 0.0, False):
        assert one(assistant("So.") | {name: zero}) == assistant("So.") | {"train": False}
    for other in (1, 1.0, True, None):
        assert one(assistant("So.") | {name: other}) == assistant("So.")


def test_reasoning_is_kept_under_its_name():
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert one(assistant("So.") | {name: "Hm."}) == assistant("So.") | {name: "Hm."}


@pytest.mark.parametrize("write", [lambda value: value, json.dumps, repr])
def test_an_object_of_lists_is_a_list_of_messages(write):
    turns = [user("Where?"), assistant(""), {"role": "tool", "content": "Here."}]
    columns: dict[str, Any] = {name: [turn[name] for turn in turns] for name in turns[0]}
    columns["tool_calls"] = [None, [CALL], None]
    expected = [turns[0], turns[1] | {"tool_calls": [CALL]}, turns[2]]
    assert content({"prompt": write(columns)}, "prompt") == expected


def test_lists_of_unequal_length_are_no_messages():
    with pytest.raises(RowFault, match="needs text for its role"):
        content({"prompt": {"role": ["user", "assistant"], "content": ["Hi."]}}, "prompt")


def test_messages_in_text_may_lack_content_if_they_call():
    turns = [user("Where?"), {"role": "assistant", "tool_calls": [CALL]}]
    expected = [turns[0], assistant("") | {"tool_calls": [CALL]}]
    assert content({"prompt": json.dumps(turns)}, "prompt") == expected


def test_nulls_inside_messages_are_keys_that_are_not_there():
    function = {"name": "seek", "arguments": {"what": "keys", "before": None, "in": {"x": None}}}
    message = assistant("") | {"tool_calls": [{"function": function, "id": None}], "name": None}
    arguments = {"what": "keys", "in": {}}
    calls = [{"function": {"name": "seek", "arguments": arguments}}]
    assert content({"prompt": [message]}, "prompt") == [assistant("") | {"tool_calls": calls}]


def test_what_is_nested_too_deeply_is_refused():
    deep: Any = "x"
    for _ in range(3_000):
        deep = {"a": deep}
    with pytest.raises(RowFault, match="nested too deeply"):
        content({"prompt": [user("Hi.") | {"extra": deep}]}, "prompt")


def test_turns_with_other_ids_and_ratings_are_the_same_turns():
    asked, same = user("Where?") | {"id": "a"}, user("Where?") | {"id": "b", "rating": 3}
    row = {"chosen": [asked, assistant("Here.")], "rejected": [same, assistant("There.")]}
    form = detect(set(row))
    assert form is not None
    found = normalize(row, form, 0)
    assert (found.prompt, found.rejected_prompt) == ([asked], [same])
    explicit = {"prompt": [user("Where?")], **row}
    form = detect(set(explicit))
    assert form is not None
    assert normalize(explicit, form, 0).chosen == [assistant("Here.")]
