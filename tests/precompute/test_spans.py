"""Which tokens of a response the policy writes, for the templates and tokenizers of many families.

Each family says by itself how a message is written. The ids are compared with a direct call of
apply_chat_template, the masks also with transformers' own for templates that mark what they write.
"""

# ruff: noqa: RUF001 - DeepSeek's tokens have such characters

import json
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from tests.checkpoints import CHATML, example_texts, make_tokenizer
from tests.precompute.conftest import assistant, message, system, tokenizer_of, user

TRL = Path(trl.__file__).parent / "chat_templates"
STOPS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<｜end▁of▁sentence｜>"]
OTHERS = ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|user|>",
          "<|assistant|>", "<|system|>", "<|begin_of_text|>", "<bos>", "<｜User｜>",
          "<｜Assistant｜>"]  # fmt: skip
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}"
    "{% endif %}{% endfor %}"
)
TOOLS = [{
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    }},
}]  # fmt: skip
Written = Callable[[Message, bool], str]


def said(end: str, start: str = "") -> Written:
    """A family that writes the content and its end."""
    return lambda message, last: f"{start}{message['content']}{end}"


def calls(message: Message) -> str:
    found = message["content"]
    for call in message.get("tool_calls", []):
        found += "\n" * bool(found) + '<tool_call>\n{"name": "weather", "arguments": '
        found += json.dumps(call["function"]["arguments"]) + "}\n</tool_call>"
    return str(found)


def qwen2(message: Message, last: bool) -> str:
    return calls(message) + "<|im_end|>\n"


def qwen3(message: Message, last: bool) -> str:
    """A thought is written after the last question only, an empty one in the last message only."""
    thought = message.get("reasoning_content", "")
    shown = last or (thought and message.get("id") == "after the last question")
    return f"<think>\n{thought}\n</think>\n\n" * bool(shown) + qwen2(message, last)


class Family(NamedTuple):
    """A template, how it writes a message of the assistant, and what it knows."""

    template: str
    written: Written
    system: bool = True
    tools: bool = False
    marks: bool = False


@cache
def template(name: str) -> str:
    return name if "{%" in name else (TRL / f"{name}.jinja").read_text(encoding="utf-8")


FAMILIES = {
    "chatml": Family(CHATML, said("<|im_end|>\n")),
    "mistral": Family(MISTRAL, said("</s>", " "), system=False),
    "llama3": Family("llama3", said("<|eot_id|>")),
    "llama3 marked": Family("llama3_training", said("<|eot_id|>"), marks=True),
    "gemma2": Family("gemma", said("<end_of_turn>\n"), system=False),
    "gemma3": Family("gemma3", said("<end_of_turn>\n")),
    "gemma3 marked": Family("gemma3_training", said("<end_of_turn>\n"), marks=True),
    "phi3": Family("phi3_5", said("<|end|>\n")),
    "r1": Family("deepseek_r1_distill", said("<｜end▁of▁sentence｜>")),
    "qwen2.5": Family("qwen2_5", qwen2, tools=True),
    "qwen2.5 marked": Family("qwen2_5_training", qwen2, tools=True, marks=True),
    "qwen3": Family("qwen3", qwen3, tools=True),
}  # fmt: skip


@cache
def tokenizer(kind: str, source: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a kind, which knows the special tokens of all families."""
    if kind in {"bytes", "no eos"}:
        made = make_tokenizer(bos=True)
        if kind == "no eos":
            made.eos_token = None
    else:
        core = Tokenizer(models.BPE(byte_fallback=kind == "sentencepiece bytes", unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        special = ["<unk>", "<s>", "</s>", *fallback * (kind == "sentencepiece bytes")]
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=special, show_progress=False,
            initial_alphabet=list(map(chr, [*range(32, 127), 10])),
        )  # fmt: skip
        core.train_from_iterator(example_texts(), trainer)
        made = PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>",
            unk_token="<unk>",
        )  # fmt: skip
    made.add_tokens([*STOPS, *OTHERS], special_tokens=True)
    made.chat_template = template(source)
    return made


KINDS = ["no eos", "sentencepiece", "sentencepiece bytes"]


@cache
def rows_of(kind: str, source: str) -> Any:
    made = tokenizer(kind, source)
    return tokenizer_of(made, stop_ids=made.convert_tokens_to_ids(STOPS))


def direct(made: Any, messages: list[Message], **options: Any) -> list[int]:
    return list(made.apply_chat_template(messages, return_dict=False, **options))


def runs(made: Any, row: TokenizedRow, side: str = "chosen") -> list[tuple[bool, str]]:
    """The response as texts, each with whether the policy writes it."""
    ids = getattr(row, f"{side}_ids").tolist()
    mask = getattr(row, f"{side}_mask") or bytes([1] * len(ids))
    assert len(mask) == len(ids)
    found = groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1]))
    return [(own, made.decode([i for i, _ in pairs])) for own, pairs in found]


words = st.text("abcdefghij XYZ019.,?{}\"'", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def conversations(draw: Any, family: Family) -> tuple[list[Message], list[Message]]:
    """A prompt and a response of one or more messages."""
    prompt: list[Message] = []
    if family.system and draw(st.booleans()):
        prompt.append(system(draw(words)))
    for question, answer in draw(st.lists(st.tuples(words, words), max_size=2)):
        prompt += [user(question), assistant(answer)]
    prompt.append(user(draw(words)))
    response: list[Message] = []
    for _ in range(draw(st.integers(0, 3))):
        if family.tools and draw(st.booleans()):
            function = {"name": "weather", "arguments": {"city": draw(words)}}
            call = {"type": "function", "function": function}
            content = draw(st.just("") | words)
            response.append(assistant(content) | {"tool_calls": [call]})
            response.append(message("tool", draw(words)))
        else:
            response += [assistant(draw(words)), user(draw(words))]
    return prompt, [*response, assistant(draw(words))]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("bytes", name) for name in FAMILIES]
    + [(kind, name) for kind in KINDS for name in ("mistral", "llama3 marked", "qwen3")],
)
@given(data=st.data())
@settings(max_examples=10)
def test_the_mask_covers_what_the_assistant_writes_and_nothing_else(name, kind, data):
    family = FAMILIES[name]
    prompt, response = data.draw(conversations(family))
    tools = TOOLS if family.tools and data.draw(st.booleans()) else None
    made = tokenizer(kind, family.template)
    row = rows_of(kind, family.template)(Preference(0, prompt, response, None, tools=tools))
    whole = [*prompt, *response]
    ids = row.prompt_ids.tolist() + row.chosen_ids.tolist()
    assert made.decode(ids) == made.decode(direct(made, whole, tools=tools))
    if name != "r1":  # which opens a thought for the policy that it leaves out of the whole
        expected = direct(made, prompt, tools=tools, add_generation_prompt=True)
        assert row.prompt_ids.tolist() == expected
    own = [text.strip() for is_own, text in runs(made, row) if is_own]
    if name == "phi3":  # which ends every text with EOS
        assert own[-1].endswith("\n</s>")
        own[-1] = own[-1].removesuffix("\n</s>")
    messages = [m for m in response if m["role"] == "assistant"]
    written = [family.written(m, m is messages[-1]).strip() for m in messages]
    assert own == written
    stops = set(made.convert_tokens_to_ids(STOPS))
    ends = [i for i in row.chosen_ids if i in stops]
    assert len(ends) == sum(text.count(stop) for text in written for stop in STOPS) + (
        name == "phi3"
    ) + sum(m["role"] != "assistant" for m in response) * (name not in {"mistral", "r1"})
    assert row.prompt_ids.tolist().count(made.bos_token_id) <= 1
    assert made.bos_token_id not in row.chosen_ids
    if len(response) == 1:
        assert row.chosen_mask is None
    if family.marks:
        marked = made.apply_chat_template(whole, tools=tools, return_assistant_tokens_mask=True)
        theirs = bytes(marked["assistant_masks"][len(row.prompt_ids) :])
        assert (row.chosen_mask or bytes([1] * len(row.chosen_ids))) == theirs


@given(
    thoughts=st.lists(words, min_size=3, max_size=3),
    texts=st.lists(words, min_size=3, max_size=3),
    asks_again=st.booleans(),
)
@settings(max_examples=30)
def test_a_thought_that_a_template_leaves_out_of_earlier_turns_is_not_looked_for(
    thoughts, texts, asks_again
):
    family = FAMILIES["qwen3"]
    made = tokenizer("bytes", family.template)
    between = user("And now?") if asks_again else message("tool", "rain")
    response = [
        assistant(text) | {"reasoning_content": thought}
        for text, thought in zip(texts, thoughts, strict=True)
    ]
    if not asks_again:
        response = [m | {"id": "after the last question"} for m in response]
    said = [response[0], between, response[1], between, response[2]]
    row = rows_of("bytes", family.template)(Preference(0, [user("Why?")], said, None))
    own = [text for is_own, text in runs(made, row) if is_own]
    assert own == [qwen3(m, m is response[-1]) for m in response]


@pytest.mark.parametrize("name", ["chatml", "gemma3 marked", "qwen2.5 marked"])
@pytest.mark.parametrize("trained", [(0, 1), (1, 0)])
def test_a_message_that_is_not_trained_is_context(name, trained):
    family = FAMILIES[name]
    made = tokenizer("bytes", family.template)
    flags: list[Message] = [{} if count else {"train": False} for count in trained]
    turns = [assistant("one") | flags[0], user("more"), assistant("two") | flags[1]]
    prompt = [user("a"), assistant("one"), user("b")]
    row = rows_of("bytes", family.template)(Preference(0, prompt, turns, None))
    whole = made.apply_chat_template(
        [*prompt, *({k: v for k, v in m.items() if k != "train"} for m in turns)], tokenize=False
    )
    assert made.decode([*row.prompt_ids, *row.chosen_ids]) == whole
    own = [text.lstrip() for is_own, text in runs(made, row) if is_own]
    assert own == [family.written(turns[2 * trained[1]], False)]


def test_a_stop_token_behind_the_marks_is_written_too():
    source = CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}",
    )
    made = tokenizer("bytes", source)
    row = rows_of("bytes", source)(Preference(0, [user("a")], [assistant("b c")], None))
    assert runs(made, row) == [(True, "b c<|im_end|>"), (False, "\n")]


# Numbers the messages that are left, so that an earlier message changes with those after it.
COUNTING = CHATML.replace(
    "{{ message['content'] }}", "{{ messages | length - loop.index0 }}{{ message['content'] }}"
)


def test_a_message_that_others_change_is_not_guessed():
    response = [assistant("one"), user("more"), assistant("two")]
    with pytest.raises(RowFault, match="message 0 of 'chosen' differently once others") as caught:
        rows_of("bytes", COUNTING)(Preference(0, [user("a")], response, None))
    assert (caught.value.reason, caught.value.field) == (Reason.TEMPLATE_FAILED, "chosen")


def test_a_tokenizer_without_offsets_takes_all_rows_but_those_that_need_a_mask():
    slow = ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    slow.eos_token, slow.chat_template = "<|im_end|>", CHATML
    rows = tokenizer_of(slow)
    row = rows(Preference(0, [user("a")], [assistant("one")], None))
    assert row.chosen_mask is None
    assert slow.decode(row.chosen_ids) == "one<|im_end|>\n"
    response = [assistant("one"), user("more"), assistant("two")]
    with pytest.raises(RowFault, match=r"only a fast tokenizer .* can tell apart") as caught:
        rows(Preference(0, [user("a")], response, None))
    assert caught.value.reason is Reason.TEMPLATE_FAILED


def test_a_mask_is_cut_with_its_response():
    made = tokenizer("bytes", CHATML)
    response: list[Message] = [assistant("one") | {"train": False}, user("more"), assistant("two")]
    stops = made.convert_tokens_to_ids(STOPS)
    whole = rows_of("bytes", CHATML)(Preference(0, [user("a")], response, None))
    first = whole.chosen_mask.index(1)
    for kept in (first + 1, first):
        rows = tokenizer_of(made, stop_ids=stops, max_length=len(whole.prompt_ids) + kept)
        if kept > first:
            row = rows(Preference(0, [user("a")], response, None))
            assert row.chosen_mask == whole.chosen_mask[:kept]
            continue
        with pytest.raises(RowFault, match="writes no token of 'chosen' within max_length"):
            rows(Preference(0, [user("a")], response, None))


def test_rows_with_other_masks_have_other_ids():
    rows = rows_of("bytes", CHATML)
    first, last = assistant("one"), assistant("two")
    response: list[Message] = [first, user("more"), last]
    partly: list[Message] = [first | {"train": False}, user("more"), last]
    both, one = (rows(Preference(0, [user("a")], said, None)) for said in (response, partly))
    assert both.chosen_ids == one.chosen_ids
    assert both.row_id.split("-")[0] != one.row_id.split("-")[0]
