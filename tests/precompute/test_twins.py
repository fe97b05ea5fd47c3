"""Masks of templates that mark nothing, against TRL's copies of them that mark what they write.

The copies mark the generation prompt of later messages too, which the policy does not write.
"""

from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.preferences import Preference
from tests.checkpoints import make_tokenizer
from tests.precompute.conftest import assistant, message, tokenizer_of, user
from tests.precompute.test_spans import TOOLS, runs, template, words

STOPS = ["<|im_end|>", "<|return|>", "<|end|>", "<|call|>", "<｜end▁of▁sentence｜>"]  # noqa: RUF001
ADDED = ["<think>", "</think>", "<|start|>", "<|channel|>", "<|message|>"]
TWINS = ["gptoss", "nemotron_3_nano", "nemotron_3_5_lightning", "deepseekv3", "lfm2_v2", "qwen3_8"]


@cache
def tokenizer(source: str) -> Any:
    made = make_tokenizer(bos=True)
    made.add_tokens(STOPS, special_tokens=True)
    made.add_tokens(ADDED)
    made.chat_template = template(source)
    return made


def rows_of(made: Any) -> Any:
    return tokenizer_of(made, stop_ids=made.convert_tokens_to_ids(STOPS))


def call(city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"type": "function", "id": "call00001", "function": function}


@st.composite
def responses(draw: Any, name: str) -> list[Message]:
    """Turns with thoughts; calls of tools and their results if the template takes them."""
    thought = "thinking" if name == "gptoss" else "reasoning_content"
    found: list[Message] = []
    for last in [False] * draw(st.integers(0, 4)) + [True]:
        said: Message = assistant(draw(words))
        if draw(st.booleans()):
            said[thought] = draw(words)
        if last:
            return [*found, said]
        if draw(st.booleans()) and name != "deepseekv3":
            calls = {"tool_calls": [call(draw(words))], "content": ""}
            found += [said | calls, message("tool", draw(words))]
        else:
            found += [said, user(draw(words))]
    return found


def theirs(name: str, whole: list[Message], **how: Any) -> tuple[list[int], list[int]]:
    found = tokenizer(f"{name}_training").apply_chat_template(
        whole, return_assistant_tokens_mask=True, **how
    )
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.parametrize("name", TWINS)
@given(data=st.data())
@settings(max_examples=8)
def test_a_mask_found_message_by_message_is_the_one_that_is_marked(name, data):
    prompt, response = [user(data.draw(words))], data.draw(responses(name))
    made = tokenizer(name)
    row = rows_of(made)(Preference(0, prompt, response, None, tools=TOOLS))
    ids, marks = theirs(name, prompt + response, tools=TOOLS)
    assert [*row.prompt_ids, *row.chosen_ids] == ids or name == "qwen3_8"
    if [*row.prompt_ids, *row.chosen_ids] != ids:
        return
    marked = marks[len(row.prompt_ids) :]
    own = row.chosen_mask or bytes([1] * len(marked))
    opened, closed = (
        made.apply_chat_template(prompt, tokenize=False, tools=TOOLS, add_generation_prompt=opens)
        for opens in (True, False)
    )
    differing = groupby(
        zip(row.chosen_ids, own, marked, strict=True), key=lambda found: found[1] - found[2]
    )
    for more, tokens in differing:
        text = made.decode([token for token, _, _ in tokens])
        assert more == 0 or (more == -1 and text in opened.removeprefix(closed) + "</think>\n\n")


@pytest.mark.parametrize("name", TWINS)
@given(data=st.data())
@settings(max_examples=8)
def test_what_a_template_marks_is_written_also_if_later_messages_change_it(name, data):
    prompt, response = [user(data.draw(words))], data.draw(responses(name))
    row = rows_of(tokenizer(f"{name}_training"))(Preference(0, prompt, response, None, tools=TOOLS))
    ids, marks = theirs(name, prompt + response, tools=TOOLS)
    assert [*row.prompt_ids, *row.chosen_ids] == ids
    assert list(row.chosen_mask or [1] * len(row.chosen_ids)) == marks[len(row.prompt_ids) :]


def test_content_that_begins_like_the_thought_of_a_generation_prompt_is_written_from_its_start():
    made = tokenizer("deepseekv3")
    said = [assistant("<b>one</b>"), user("And?"), assistant("<table>")]
    row = rows_of(made)(Preference(0, [user("Bold?")], said, None))
    own = [text.removeprefix("</think>") for written, text in runs(made, row) if written]
    stop = "<｜end▁of▁sentence｜>"  # noqa: RUF001
    assert own == [f"<b>one</b>{stop}", f"<table>{stop}"]


def test_a_long_conversation_that_a_template_changes_throughout_is_read_in_one_go():
    made = tokenizer("nemotron_3_nano")
    response: list[Message] = []
    for turn in range(24):
        response += [assistant(f"say {turn}") | {"reasoning_content": "So."}, user("And?")]
    row = rows_of(made)(Preference(0, [user("Why?")], response[:-1], None))
    own = "".join(text for written, text in runs(made, row) if written)
    assert all(f"say {turn}<|im_end|>" in own for turn in range(24))


def test_a_message_of_which_the_first_of_two_calls_is_rendered_is_not_empty():
    made = tokenizer("gptoss")
    calls = assistant("") | {"tool_calls": [call("Oslo"), call("Rome")]}
    row = rows_of(made)(Preference(0, [user("Rain?")], [calls], None, tools=TOOLS))
    assert "Oslo" in made.decode(list(row.chosen_ids))
