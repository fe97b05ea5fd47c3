"""Every column is used, kept, left out on purpose, or named as not used."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.precompute.tokens.reader import Reader
from tests.precompute.conftest import (
    PAIR,
    assistant,
    save,
    tokenizer_of,
    trained_tokenizer,
    user,
)

WHOLE = {"chosen": "The answer is 4.", "rejected": "The answer is 5."}
TALK = {
    "chosen": [user("2 + 2?"), assistant("4")],
    "rejected": [user("2 + 2?"), assistant("5")],
}
DIALOGUE = {
    "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
    "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
}
SCHEMA = {"type": "function", "function": {"name": "add", "description": "Add two numbers."}}


@pytest.fixture
def lines(tmp_path):
    return lambda *rows: save(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def columns(tmp_path):
    """What became of the columns of a source."""

    def run(data, **options):
        config = DataConfig(reference="x", data=str(data), **options)
        with Quarantine(tmp_path / "quarantine.parquet") as aside:
            reader = Reader(config, aside)
            list(reader.tokenized(tokenizer_of(trained_tokenizer()), lambda amount: None))
        return str(reader.reading().columns)

    return run


@pytest.mark.parametrize("name", ["question", "instruction", "input", "query", "context"])
def test_a_column_that_may_be_the_prompt_of_whole_texts_is_proposed_and_not_assumed(
    name, load, lines
):
    path = lines(WHOLE | {name: "What is 2 + 2?"})
    with pytest.raises(InputError, match=rf"--columns prompt={name}.*--ignore {name}") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: line 1: ")
    [row] = load(path, columns={"prompt": name}).rows
    assert row.prompt_ids == load(lines(WHOLE | {"prompt": "What is 2 + 2?"})).rows[0].prompt_ids
    path = lines(WHOLE | {name: "What is 2 + 2?"})
    assert load(path, ignore=[name]).rows == load(lines(WHOLE)).rows


@pytest.mark.parametrize(
    "other",
    [
        {"post": "I wonder what it is."},
        {"user": "what is it?"},
        {"title": "法国的首都是哪里"},
        {"history": [user("2 + 2?")]},
        {"text": "a b", "id": 7},
    ],
)
def test_any_text_beside_whole_texts_may_be_the_prompt(other, load, lines):
    with pytest.raises(InputError, match="there is no column 'prompt'"):
        load(lines(WHOLE | other))


@pytest.mark.parametrize(
    "about",
    [
        {"id": "a b c", "prompt_id": "x y", "source": "some set of mine", "language": "en us"},
        {"score_chosen": 4, "margin": 0.5, "flag": True, "chosen_model": "a model of mine"},
        {"quality": "good enough", "annotatorNote": "I like it.", "createdAt": "1 May"},
        {"word": "one", "url": "http://x", "post": None, "title": "", "tags": ["a", "b"]},
    ],
)
def test_columns_that_describe_a_row_are_no_prompt(about, load, lines):
    assert load(lines(WHOLE | about)).rows[0].prompt_ids == load(lines(WHOLE)).rows[0].prompt_ids


@pytest.mark.parametrize("whole", [DIALOGUE, TALK])
def test_marked_turns_leave_nothing_to_guess(whole, load, lines):
    plain = load(lines(whole)).rows
    assert load(lines(whole | {"post": "A text of its own.", "question": "2 + 2?"})).rows == plain
    with pytest.raises(InputError, match="'question'"):
        load(lines(whole | {"question": "3 + 3?"}))


def test_a_question_inside_a_response_is_used(load, lines):
    row = {name: [user("Hi."), assistant(name), *TALK[name]] for name in TALK}
    path = lines(row | {"question": "2 + 2?"})
    assert load(path, responses="whole").rows == load(lines(row), responses="whole").rows
    with pytest.raises(InputError, match="'question' has text"):
        load(lines(row | {"question": "3 + 3?"}), responses="whole")


def test_the_prompt_of_whole_texts_may_show_up_late(load, lines):
    rows = [WHOLE | {"post": None}] * 150
    with pytest.raises(InputError, match="line 151: there is no column 'prompt'"):
        load(lines(*rows, WHOLE | {"post": "What is it?"}))
    with pytest.raises(InputError, match="line 151: this is the first row with the columns prompt"):
        load(lines(*[WHOLE] * 150, PAIR))


@pytest.mark.parametrize(
    ("row", "columns", "way"),
    [
        ({"instruction": "Add.", "input": "2 and 2"}, {"prompt": "instruction"},
         "--columns prompt=instruction+input"),
        ({"prompt": "Add.", "context": "2 and 2"}, {}, "--columns prompt=prompt+context"),
        ({"question": "Add.", "context": "2 and 2"}, {"prompt": "question"}, "--ignore context"),
        ({"prompt": "Add.", "system": "Be brief."}, {}, "--columns prompt=system+prompt"),
        ({"prompt": "Add.", "system": "Be brief."}, {}, "--as-chat to make it one"),
        ({"prompt": "Add.", "system_prompt": "Be brief."}, {},
         "--columns prompt=system_prompt+prompt"),
        ({"prompt": [user("Add.")], "system_prompt": "Be brief."}, {},
         "--columns system=system_prompt"),
    ],
)  # fmt: skip
def test_text_beside_the_prompt_is_joined_or_left_out_when_the_user_says_so(
    row, columns, way, load, lines
):
    answers = {"chosen": " 4", "rejected": " 5"}
    with pytest.raises(InputError, match="' has text") as caught:
        load(lines(row | answers), columns=columns)
    assert way in str(caught.value)


@pytest.mark.parametrize(
    ("system", "columns"),
    [
        ("system", {"prompt": "question"}),
        ("system_prompt", {"prompt": "question", "system": "system_prompt"}),
    ],
)
def test_a_system_text_beside_a_question_becomes_a_message_as_the_error_says(
    system, columns, load, lines
):
    path = lines(WHOLE | {system: "Be brief.", "question": "What is 2 + 2?"})
    way = ",".join(f"{new}={old}" for new, old in columns.items())
    with pytest.raises(InputError, match=f"--columns {way} --as-chat with a system message"):
        load(path)
    [row] = load(path, columns=columns, as_chat=True).rows
    assert trained_tokenizer().decode(list(row.prompt_ids)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_joined_columns_are_one_prompt(load, lines):
    rows = [
        {"instruction": "Add.", "input": extra, "chosen": " 4", "rejected": " 5"}
        for extra in ("2 and 2", "", None)
    ]
    found = load(lines(*rows), columns={"prompt": "instruction+input"}).rows
    expected = [PAIR | {"prompt": said} for said in ("Add.\n\n2 and 2", "Add.", "Add.")]
    assert [row.prompt_ids for row in found] == [
        row.prompt_ids for row in load(lines(*expected)).rows
    ]


def test_a_plus_sign_can_be_part_of_a_name(load, lines):
    row = {"a+b": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
    assert load(lines(row), columns={"prompt": "a+b"}).rows == load(lines(PAIR)).rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [SCHEMA]), ("tools", json.dumps([SCHEMA])), ("functions", [SCHEMA["function"]]),
        ("images", ["a.png"]), ("image", {"bytes": "x", "path": None}), ("audio", "a.wav"),
        ("videos", ["a"]), ("chat_template_kwargs", {"enable_thinking": False}),
        ("reasoning_content", "So."), ("tool_calls", [{"x": 1}]), ("documents", ["a"]),
    ],
)  # fmt: skip
def test_what_would_not_reach_the_model_is_refused_with_a_way_out(name, value, load, lines):
    empty = [None, "", [], {}, "[]", {"a": None}, [None]]
    rows = [PAIR | {name: nothing} for nothing in empty]
    found = load(lines(*rows, PAIR | {name: value}, PAIR))
    assert [(row["reason"], row["field"]) for row in found.set_aside] == [("unsupported", name)]
    assert f"--ignore {name}" in found.set_aside[0]["detail"]
    assert len(load(lines(*rows, PAIR | {name: value}), ignore=[name]).rows) == len(rows) + 1
    with pytest.raises(InputError, match=f"--ignore {name}"):
        load(lines(PAIR | {name: value}))


def test_images_in_messages_are_refused_by_name(load, lines):
    seen = [user("2 + 2?") | {"content": [{"type": "image", "url": "a.png"}]}]
    row = {"prompt": seen, "chosen": "4", "rejected": "5"}
    found = load(lines(row, PAIR))
    assert [(row["reason"], row["field"]) for row in found.set_aside] == [("unsupported", "prompt")]
    assert "'image'" in found.set_aside[0]["detail"]
    with pytest.raises(InputError, match=r"in all of the first rows.*reflogp scores text"):
        load(lines(row, row))


def test_what_the_template_gets_is_a_used_column(columns, lines):
    row = TALK | {"tools": [SCHEMA], "chat_template_kwargs": {"short": True}}
    assert columns(lines(row)) == "used: chosen, rejected, tools, chat_template_kwargs"
    renamed = TALK | {"functions": [SCHEMA["function"]]}
    assert columns(lines(renamed), columns={"tools": "functions"}) == (
        "used: chosen, rejected, tools (from functions)"
    )


def test_every_column_is_accounted_for(columns, lines):
    rows = [PAIR | {"source": "a", "note": "b", "chosen_score": 2, "rejected_score": 1}] * 120
    path = lines(*rows, PAIR | {"late": 1})
    assert columns(path, keep=["source"], ignore=["note"]) == (
        "used: prompt, chosen, rejected, chosen_score, rejected_score; kept: source; "
        "ignored: note; not used: late"
    )
    asked = {"question": "2 + 2 =", "chosen": " 4", "rejected": " 5", "prompt": "other"}
    assert columns(lines(asked), columns={"prompt": "question"}) == (
        "used: prompt (from question), chosen, rejected; not used: prompt"
    )
    assert columns(lines(TALK | {"system": "Be brief."})) == "used: chosen, rejected, system"


def test_an_option_may_name_a_column_that_shows_up_late(load, lines):
    path = lines(*[PAIR] * 150, PAIR | {"topic": "sums"})
    found = load(path, keep=["topic"]).rows
    assert [row.kept[0]["value"] for row in found if row.kept][-2:] == [None, "sums"]
    with pytest.raises(InputError, match=r"--ignore titel: there is no column 'titel'\. The"):
        load(path, ignore=["titel"])


def test_columns_of_a_file_with_nulls_are_as_those_of_lines(load, tmp_path):
    rows = [PAIR | {"tools": None, "system": None}, PAIR | {"tools": None, "system": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert load(tmp_path / "a.parquet").rows == load(tmp_path / "a.jsonl.gz").rows


def test_names_of_columns_may_be_as_odd_and_as_many_as_they_like(columns, lines):
    rows = [PAIR | {f"column {i} \ud800": i} for i in range(300)]
    path = lines(PAIR)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    told = columns(path)
    assert r"column 0 \ud800" in told
    assert told.endswith("and 200 more")


def test_a_row_that_is_nested_deeply_is_one_rows_fault(load, lines):
    deep = '{"prompt": "a", "chosen": "b", "rejected": "c", "tools": ' + "[" * 900 + "]" * 900 + "}"
    path = lines(PAIR)
    path.write_text(json.dumps(PAIR) + "\n" + deep + "\n", encoding="utf-8")
    loaded = load(path)
    assert len(loaded.rows) + len(loaded.set_aside) == 2
