"""Every input form becomes one shape; a row that does not fit it says exactly why."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.preferences import Preference, detect, no_form, normalize
from tests.precompute.conftest import assistant, message, system, user

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real preference data in {REAL}")

# One question and its answers, in each way in which they can be written down.
ASKED = [user("Capital of Peru?")]
GOOD, BAD = [assistant("Lima.")], [assistant("Quito.")]
BRIEF = [system("Be brief."), *ASKED]
TWO_TURNS = [user("Hi."), assistant("Hello."), *ASKED]
TEXT = {"prompt": "Q: Capital of Peru?\nA:", "chosen": " Lima.", "rejected": " Quito."}
MESSAGES: dict[str, Any] = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}


def said(who: str, what: str) -> dict[str, str]:
    return {"from": who, "value": what}


def transcript(*turns: str) -> str:
    """`("Hi.", "Hello.", "Bye.")` as the user's, the assistant's and the user's turn."""
    speakers = ("Human", "Assistant") * len(turns)
    return "".join(f"\n\n{who}: {turn}" for who, turn in zip(speakers, turns, strict=False))


def read(row: dict[str, Any]) -> Preference:
    form = detect(set(row))
    assert form is not None
    return normalize(row, form, 7)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        pytest.param(MESSAGES, ASKED, id="messages"),
        pytest.param(MESSAGES | {"prompt": TWO_TURNS}, TWO_TURNS, id="several turns"),
        pytest.param(MESSAGES | {"prompt": ASKED[0]["content"]}, ASKED, id="string prompt"),
        pytest.param(
            {"prompt": ASKED, "chosen": "Lima.", "rejected": "Quito."}, ASKED, id="string responses"
        ),
        pytest.param(
            {"prompt": ASKED[0], "chosen": GOOD[0], "rejected": BAD[0]}, ASKED, id="single messages"
        ),
        pytest.param(
            {"chosen": TWO_TURNS + GOOD, "rejected": TWO_TURNS + BAD},
            TWO_TURNS,
            id="whole conversations",
        ),
        pytest.param(
            {"prompt": "Capital of Peru?", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
            ASKED,
            id="prompt column and whole conversations",
        ),
        pytest.param(
            {"prompt": "Capital of Peru?\n", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
            ASKED,
            id="prompt column with other white space",
        ),
        pytest.param(
            {"prompt": BRIEF, "chosen": BRIEF + GOOD, "rejected": BAD},
            BRIEF,
            id="one whole conversation",
        ),
        pytest.param(
            {"prompt": BRIEF, "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
            BRIEF,
            id="conversations without the system message",
        ),
        pytest.param(
            {
                "conversations": [said("human", "Capital of Peru?")],
                "chosen": said("gpt", "Lima."),
                "rejected": said("gpt", "Quito."),
            },
            ASKED,
            id="ShareGPT",
        ),
        pytest.param(
            {
                "conversations": [said("system", "Be brief."), said("human", "Capital of Peru?")],
                "chosen": [said("gpt", "Lima.")],
                "rejected": [said("gpt", "Quito.")],
            },
            BRIEF,
            id="ShareGPT with a system message",
        ),
        pytest.param(
            {"messages": ASKED, "chosen": GOOD, "rejected": BAD}, ASKED, id="messages column"
        ),
        pytest.param(MESSAGES | {"system": "Be brief."}, BRIEF, id="system column"),
        pytest.param(
            MESSAGES | {"prompt": BRIEF, "system": "Be brief."},
            BRIEF,
            id="system column and message",
        ),
        pytest.param(MESSAGES | {"system": None}, ASKED, id="null system column"),
        pytest.param(
            {"chosen": ASKED + GOOD, "rejected": ASKED + BAD, "system": "Be brief."},
            BRIEF,
            id="whole conversations and system column",
        ),
    ],
)
def test_every_form_of_messages_reads_the_same(row, prompt):
    assert read(row) == Preference(7, prompt, GOOD, BAD)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        pytest.param(TEXT["chosen"], TEXT["rejected"], TEXT["prompt"], id="explicit"),
        pytest.param(" Hello.", " Go.", "\n\nHuman: Hi.\n\nAssistant:", id="one turn"),
        pytest.param(" 4", " 5", transcript("Hi.", "Hello.", "2+2?", "")[:-1], id="three turns"),
        pytest.param(" blue.", " bluish green.", "The sky is", id="end of a word"),
        pytest.param("\nyes", "\nno", "Is two a prime?", id="line"),
        pytest.param(" tea", " tea with milk", "I like", id="one begins with the other"),
    ],
)
def test_texts_divide_into_prompt_and_responses(chosen, rejected, prompt):
    expected = Preference(7, prompt, chosen, rejected)
    assert read({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == expected
    # the same without a prompt column: the transcript's last turn, or the common words, divide
    assert read({"chosen": prompt + chosen, "rejected": prompt + rejected}) == expected


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "Q:", "completion": " A"}, "Q:", " A"),
        ({"prompt": ASKED, "completion": GOOD}, ASKED, GOOD),
        ({"prompt": "Capital of Peru?", "completion": GOOD}, ASKED, GOOD),
        ({"prompt": ASKED, "completion": "Lima."}, ASKED, GOOD),
        ({"prompt": ASKED, "completion": ASKED + GOOD}, ASKED, GOOD),
        ({"messages": TWO_TURNS + GOOD}, TWO_TURNS, GOOD),
        ({"messages": ASKED + GOOD, "system": "Be brief."}, BRIEF, GOOD),
        ({"conversations": [said("human", "Capital of Peru?"), said("gpt", "Lima.")]}, ASKED, GOOD),
    ],
)
@pytest.mark.parametrize("good", [True, False])
def test_an_unpaired_response_is_chosen_or_rejected_by_its_label(row, prompt, response, good):
    chosen, rejected = (response, None) if good else (None, response)
    expected = Preference(7, prompt, chosen, rejected)
    for label in (good, int(good), float(good), str(good), str(good).lower(), str(int(good))):
        assert read(row | {"label": label}) == expected


@pytest.mark.parametrize(
    ("columns", "name", "paired"),
    [
        ("prompt chosen rejected", "prompt+chosen+rejected", True),
        ("prompt chosen rejected messages label", "prompt+chosen+rejected", True),
        ("chosen rejected", "chosen+rejected", True),
        ("chosen rejected messages", "messages+chosen+rejected", True),
        ("chosen rejected conversations", "conversations+chosen+rejected", True),
        ("chosen rejected label", "chosen+rejected", True),
        ("prompt completion label", "prompt+completion+label", False),
        ("messages label", "messages+label", False),
        ("conversation label", "conversation+label", False),
    ],
)
def test_the_columns_tell_the_form(columns, name, paired):
    form = detect({*columns.split(), "id"})
    assert form is not None
    assert (form.name, form.paired) == (name, paired)


@pytest.mark.parametrize(
    "columns", ["", "text", "prompt", "prompt chosen", "messages", "label", "prompt completion"]
)
def test_columns_of_no_known_form_are_listed_with_what_is_known(columns):
    assert detect(set(columns.split())) is None
    message = str(no_form(set(columns.split()), "a.csv"))
    assert message.startswith(
        f"a.csv: the columns {', '.join(sorted(columns.split())) or '(none)'} match no input form"
    )
    assert "prompt+chosen+rejected" in message
    assert "--columns prompt=question" in message


def test_other_keys_of_a_message_are_kept_and_nulls_dropped():
    call = {"role": "tool", "content": "4", "name": "sum", "tool_calls": None}
    prompt = read(MESSAGES | {"prompt": [*ASKED, call]}).prompt
    assert prompt[1] == {"role": "tool", "content": "4", "name": "sum"}


def test_known_names_of_the_roles_are_made_one():
    names = ("Human", "prompter", "gpt", "bot", "model", "AI", "observation", "function", " System",
             "narrator")  # fmt: skip
    prompt = read(MESSAGES | {"prompt": [said(name, "x") for name in names]}).prompt
    assert [m["role"] for m in prompt if isinstance(m, dict)] == [
        "user", "user", "assistant", "assistant", "assistant", "assistant", "tool", "tool",
        "system", "narrator",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "confidence"),
    [
        ({}, None),
        ({"confidence": 0.75}, 0.75),
        ({"confidence": "0.75"}, 0.75),
        ({"chosen_score": 9, "rejected_score": 2.5}, 6.5),
        ({"score_chosen": 1, "score_rejected": 3}, -2),
        ({"chosen_rating": "4", "rejected_rating": "1"}, 3),
        ({"confidence": 0.5, "chosen_score": 9, "rejected_score": 1}, 0.5),
        ({"chosen_score": 9}, None),
    ],
)
def test_confidence_is_a_column_or_the_difference_of_two_scores(extra, confidence):
    assert read(TEXT | extra).confidence == confidence


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        # a field alone
        (TEXT | {"chosen": None}, Reason.NULL_FIELD, "chosen"),
        (TEXT | {"prompt": float("nan")}, Reason.NULL_FIELD, "prompt"),
        (TEXT | {"chosen": 5}, Reason.WRONG_TYPE, "chosen"),
        (TEXT | {"rejected": True}, Reason.WRONG_TYPE, "rejected"),
        (TEXT | {"prompt": ""}, Reason.EMPTY_PROMPT, "prompt"),
        (TEXT | {"prompt": " \n"}, Reason.EMPTY_PROMPT, "prompt"),
        (TEXT | {"prompt": []}, Reason.EMPTY_PROMPT, "prompt"),
        (TEXT | {"prompt": [user(" ")]}, Reason.EMPTY_PROMPT, "prompt"),
        (TEXT | {"chosen": ""}, Reason.EMPTY_RESPONSE, "chosen"),
        (TEXT | {"rejected": " \t\n"}, Reason.EMPTY_RESPONSE, "rejected"),
        (TEXT | {"rejected": TEXT["chosen"]}, Reason.IDENTICAL_RESPONSES, "chosen"),
        (TEXT | {"prompt": "\ud800"}, Reason.INVALID_UTF8, "prompt"),
        (TEXT | {"chosen": "a\udfff"}, Reason.INVALID_UTF8, "chosen"),
        # messages
        (MESSAGES | {"chosen": []}, Reason.EMPTY_RESPONSE, "chosen"),
        (MESSAGES | {"chosen": [assistant("")]}, Reason.EMPTY_RESPONSE, "chosen"),
        (MESSAGES | {"rejected": GOOD}, Reason.IDENTICAL_RESPONSES, "chosen"),
        (MESSAGES | {"rejected": [assistant("\ud800")]}, Reason.INVALID_UTF8, "rejected"),
        (MESSAGES | {"prompt": ["Hi."]}, Reason.BAD_MESSAGES, "prompt"),
        (MESSAGES | {"prompt": [{"content": "Hi."}]}, Reason.BAD_MESSAGES, "prompt"),
        (MESSAGES | {"prompt": [{"role": "user"}]}, Reason.BAD_MESSAGES, "prompt"),
        (MESSAGES | {"chosen": [message("assistant", None)]}, Reason.BAD_MESSAGES, "chosen"),  # type: ignore[arg-type]
        (MESSAGES | {"chosen": [user("Hi.")]}, Reason.BAD_MESSAGES, "chosen"),
        (MESSAGES | {"rejected": GOOD + ASKED}, Reason.BAD_MESSAGES, "rejected"),
        (MESSAGES | {"rejected": TWO_TURNS + BAD}, Reason.BAD_MESSAGES, "rejected"),
        # whole conversations
        ({"chosen": ASKED + GOOD, "rejected": TWO_TURNS + BAD}, Reason.PROMPTS_DIFFER, "chosen"),
        ({"chosen": ASKED + GOOD, "rejected": BRIEF + BAD}, Reason.PROMPTS_DIFFER, "chosen"),
        ({"chosen": ASKED + GOOD, "rejected": "Quito."}, Reason.WRONG_TYPE, "chosen"),
        ({"chosen": [], "rejected": []}, Reason.EMPTY_RESPONSE, "chosen"),
        ({"chosen": GOOD, "rejected": BAD}, Reason.EMPTY_PROMPT, "prompt"),
        ({"chosen": ASKED + ASKED, "rejected": ASKED + BAD}, Reason.BAD_MESSAGES, "chosen"),
        # whole texts
        ({"chosen": "Yes.", "rejected": "No."}, Reason.EMPTY_PROMPT, "chosen"),
        ({"chosen": transcript("Hi.", "Ho."), "rejected": transcript("Hi!", "Ha.")},
         Reason.PROMPTS_DIFFER, "chosen"),
        ({"chosen": transcript("Hi.", "Ho."), "rejected": transcript("Hi.", "Ha.", "No.", "Oh.")},
         Reason.PROMPTS_DIFFER, "chosen"),
        ({"chosen": transcript("Hi.", "Ho."), "rejected": transcript("Hi.", "Ha.", "No.")},
         Reason.BAD_MESSAGES, "rejected"),
        ({"chosen": transcript("Hi.", ""), "rejected": transcript("Hi.", "Ha.")},
         Reason.EMPTY_RESPONSE, "chosen"),
        # unpaired
        ({"prompt": "Q", "completion": "A", "label": None}, Reason.NULL_FIELD, "label"),
        ({"prompt": "Q", "completion": "A", "label": "maybe"}, Reason.WRONG_TYPE, "label"),
        ({"prompt": "Q", "completion": "A", "label": 2}, Reason.WRONG_TYPE, "label"),
        ({"prompt": "Q", "completion": "A", "label": [1]}, Reason.WRONG_TYPE, "label"),
        ({"prompt": "Q", "completion": "", "label": 1}, Reason.EMPTY_RESPONSE, "completion"),
        ({"prompt": "Q", "completion": " ", "label": 0}, Reason.EMPTY_RESPONSE, "completion"),
        ({"messages": [*ASKED, assistant("")], "label": 0}, Reason.EMPTY_RESPONSE, "messages"),
        ({"messages": "Hi.", "label": True}, Reason.WRONG_TYPE, "messages"),
        ({"messages": [], "label": True}, Reason.EMPTY_RESPONSE, "messages"),
        ({"messages": ASKED, "label": True}, Reason.BAD_MESSAGES, "messages"),
        ({"messages": GOOD, "label": True}, Reason.EMPTY_PROMPT, "prompt"),
        # a system text
        (MESSAGES | {"prompt": BRIEF, "system": "Be long."}, Reason.BAD_MESSAGES, "system"),
        (MESSAGES | {"system": ["Be long."]}, Reason.WRONG_TYPE, "system"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why_and_where(row, reason, field):
    with pytest.raises(RowFault) as caught:
        read(row)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.detail


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"confidence": "high"}, "confidence"),
        ({"confidence": float("inf")}, "confidence"),
        ({"confidence": 10**400}, "confidence"),
        ({"confidence": [1]}, "confidence"),
        ({"chosen_score": 1, "rejected_score": "N/A"}, "rejected_score"),
    ],
)
def test_a_score_that_is_no_number_leaves_the_row_without_confidence(extra, field):
    found = read(TEXT | extra)
    assert found.confidence is None
    assert found.bad_score is not None
    assert found.bad_score.field == field


@pytest.mark.parametrize(
    "extra",
    [
        {"confidence": None},
        {"confidence": ""},
        {"chosen_rating": None, "rejected_rating": None},
        {"chosen_rating": 4.5, "rejected_rating": None},
    ],
)
def test_a_score_that_is_null_is_no_score(extra):
    found = read(TEXT | extra)
    assert (found.confidence, found.bad_score) == (None, None)


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_row_without_a_field_that_others_have_says_which(field):
    form = detect(set(TEXT))
    assert form is not None
    with pytest.raises(RowFault, match=f"the field '{field}' is missing") as caught:
        normalize({name: TEXT[name] for name in TEXT if name != field}, form, 0)
    assert (caught.value.reason, caught.value.field) == (Reason.MISSING_FIELD, field)


@needs_real_data
def test_every_real_transcript_loads_but_those_that_differ_too_early_or_answer_nothing(load):
    path = REAL / "hh-harmless.jsonl.gz"
    pairs = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    sides = [[pair[side].rpartition("\n\nAssistant:") for side in pair] for pair in pairs]
    differ = [i for i, (chosen, rejected) in enumerate(sides) if chosen[:2] != rejected[:2]]
    empty = [i for i, both in enumerate(sides) if not all(answer.strip() for *_, answer in both)]
    assert (len(pairs), len(differ), len(empty)) == (1712, 2, 4)

    loaded = load(path)
    assert loaded.form == "chosen+rejected"
    assert loaded.read == 1712
    assert len(loaded.rows) == 1706
    assert {(row["reason"], row["source_row"]) for row in loaded.set_aside} == {
        *(("prompts_differ", i) for i in differ),
        *(("empty_response", i) for i in empty),
    }


@needs_real_data
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("dpo_en_demo.json", "conversations+chosen+rejected"),
        ("kto_en_demo.json", "messages+label"),
    ],
)
def test_every_real_conversation_loads(name, form, load):
    loaded = load(REAL / name)
    assert (loaded.form, len(loaded.rows), loaded.set_aside) == (form, 300, [])
