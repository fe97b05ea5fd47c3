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


@pytest.mark.parametrize(
    "said",
    [
        [{"type": "text", "text": "Hi."}],
        [{"type": "image"}, {"type": "text", "text": "What is it?"}],
        [],
    ],
)
def test_content_in_parts_is_refused_by_what_it_is(said):
    with pytest.raises(RowFault, match="is a list of parts") as caught:
        content({"prompt": [user("Hi."), {"role": "user", "content": said}]}, "prompt")
    assert caught.value.reason is Reason.BAD_MESSAGES


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
