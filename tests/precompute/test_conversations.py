"""Where the prompt of a conversation ends, and which messages of a response are context."""

from typing import Any

import pytest

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.forms import ReadRules
from reflogp.stages.precompute.read.preferences import Preference, detect, normalize
from tests.precompute.conftest import assistant, message, system, user

Messages = list[dict[str, Any]]

ASKED = [user("Rain in Oslo?")]
FIRST, AGAIN = user("Hi."), user("And in Rome?")
CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "rain", "arguments": {"in": "Oslo"}},
}
CALLS = assistant("") | {"tool_calls": [CALL]}
OTHER = assistant("Hm.") | {"tool_calls": [CALL]}
WET, DRY = message("tool", "wet"), message("tool", "dry")
YES, NO = assistant("Yes."), assistant("No.")
BEGUN, REST = assistant("Ye"), assistant("s.")
BRIEF = system("Be brief.")
WHOLE = ReadRules(whole=True)


def context(*messages: dict[str, Any]) -> Messages:
    return [each | {"train": False} for each in messages]


def read(row: dict[str, Any], rules: ReadRules | None = None) -> Preference:
    form = detect(set(row))
    assert form is not None
    return normalize(row, form, 0, rules or ReadRules())


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        pytest.param([CALLS, WET, YES], [NO], ASKED, ([CALLS, WET, YES], [NO]), id="a call"),
        pytest.param(
            [CALLS, WET, YES],
            [OTHER, WET, YES],
            ASKED,
            ([CALLS, WET, YES], [OTHER, WET, YES]),
            id="another first step",
        ),
        pytest.param(
            [CALLS, WET, YES],
            [CALLS, WET, NO],
            [*ASKED, CALLS, WET],
            ([YES], [NO]),
            id="another last step",
        ),
        pytest.param(
            [CALLS, WET, CALLS, DRY, YES],
            [CALLS, WET, OTHER, DRY, YES],
            [*ASKED, CALLS, WET],
            ([CALLS, DRY, YES], [OTHER, DRY, YES]),
            id="another step in the middle",
        ),
        pytest.param(
            [CALLS, WET, YES],
            [CALLS, DRY, NO],
            ASKED,
            ([*context(CALLS), WET, YES], [*context(CALLS), DRY, NO]),
            id="another result of the same call",
        ),
        pytest.param(
            [CALLS, WET, YES],
            [CALLS, NO],
            ASKED,
            ([*context(CALLS), WET, YES], [*context(CALLS), NO]),
            id="an answer without the result",
        ),
        pytest.param(
            [YES, YES], [YES, NO], ASKED, ([*context(YES), YES], [*context(YES), NO]), id="two"
        ),
        pytest.param([YES], [YES, NO], ASKED, ([YES], [YES, NO]), id="one begins with the other"),
        pytest.param(
            [YES | {"reasoning_content": "a"}, YES],
            [YES | {"reasoning_content": "b"}, NO],
            ASKED,
            ([YES | {"reasoning_content": "a"}, YES], [YES | {"reasoning_content": "b"}, NO]),
            id="other reasoning",
        ),
        pytest.param(
            [YES, AGAIN, YES], [YES, AGAIN, NO], [*ASKED, YES, AGAIN], ([YES], [NO]), id="dialogue"
        ),
    ],
)  # fmt: skip
def test_two_conversations_divide_where_an_assistant_begins(chosen, rejected, prompt, responses):
    row = {"chosen": ASKED + chosen, "rejected": ASKED + rejected}
    found = read(row)
    assert (found.prompt, (found.chosen, found.rejected)) == (prompt, responses)
    assert read(row, WHOLE) == found
    # ids of messages and calls make no difference
    other = read(row | {"rejected": [each | {"id": at} for at, each in enumerate(row["rejected"])]})
    assert (other.prompt, other.chosen) == (prompt, responses[0])
    assert isinstance(other.rejected_prompt, list)
    assert [each["id"] for each in other.rejected_prompt] == [*range(len(prompt))]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        ([YES, AGAIN, YES], [NO, AGAIN, NO], ASKED, ([YES, AGAIN, YES], [NO, AGAIN, NO])),
        ([YES, AGAIN, YES], [NO], ASKED, ([YES, AGAIN, YES], [NO])),
        ([YES, AGAIN, YES], [YES, FIRST, NO], ASKED,
         ([*context(YES), AGAIN, YES], [*context(YES), FIRST, NO])),
        ([YES, AGAIN, CALLS, WET, YES], [YES, AGAIN, NO, FIRST, NO], [*ASKED, YES, AGAIN],
         ([CALLS, WET, YES], [NO, FIRST, NO])),
    ],
)  # fmt: skip
def test_another_question_in_a_response_needs_an_option(chosen, rejected, prompt, responses):
    row = {"chosen": ASKED + chosen, "rejected": ASKED + rejected}
    with pytest.raises(RowFault, match="--responses whole") as caught:
        read(row)
    assert caught.value.reason is Reason.PROMPTS_DIFFER
    found = read(row, WHOLE)
    assert (found.prompt, (found.chosen, found.rejected)) == (prompt, responses)
    # beside a prompt, too
    beside = row | {"prompt": ASKED}
    assert read(beside, WHOLE) == found
    with pytest.raises(RowFault, match="--responses whole"):
        read(beside)


@pytest.mark.parametrize("rules", [ReadRules(), WHOLE])
@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([FIRST, YES], [AGAIN, NO], Reason.PROMPTS_DIFFER),
        (
            [BRIEF, FIRST, YES],
            [BRIEF, AGAIN, NO],
            Reason.PROMPTS_DIFFER,
        ),
        ([FIRST, CALLS, WET], [FIRST, NO], Reason.BAD_MESSAGES),
        ([FIRST, YES], [FIRST, NO, AGAIN], Reason.BAD_MESSAGES),
        ([WET, YES], [WET, NO], None),
        ([YES], [NO], Reason.EMPTY_PROMPT),
        ([YES, WET, YES], [NO, WET, YES], Reason.EMPTY_PROMPT),
        ([], [FIRST, NO], Reason.EMPTY_RESPONSE),
        ([FIRST, YES], [FIRST, YES], Reason.IDENTICAL_RESPONSES),
        ([FIRST, YES], [FIRST, NO | {"weight": 0}], Reason.EMPTY_RESPONSE),
    ],
)
def test_conversations_that_cannot_be_divided(chosen, rejected, reason, rules):
    row = {"chosen": chosen, "rejected": rejected}
    if reason is None:
        assert read(row, rules).prompt == chosen[:-1]
        return
    with pytest.raises(RowFault) as caught:
        read(row, rules)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("prompt", "responses", "expected"),
    [
        pytest.param(ASKED, [CALLS, WET, YES], (ASKED, [CALLS, WET, YES]), id="several messages"),
        pytest.param(
            ASKED, [*ASKED, CALLS, WET, YES], (ASKED, [CALLS, WET, YES]), id="prompt repeated"
        ),
        pytest.param(
            [*ASKED, CALLS], [WET, YES], (ASKED, [*context(CALLS), WET, YES]), id="result first"
        ),
        pytest.param(
            [*ASKED, CALLS], [YES], (ASKED, [*context(CALLS), YES]), id="no result of a call"
        ),
        pytest.param([*ASKED, CALLS, WET], [YES], ([*ASKED, CALLS, WET], [YES]), id="result last"),
        pytest.param(
            [*ASKED, BEGUN], [REST], ([*ASKED, BEGUN], [REST]),
            id="prefill",
        ),
        pytest.param(
            [*ASKED, BEGUN], [*ASKED, YES], ([*ASKED, BEGUN], [REST]),
            id="prefill repeated",
        ),
        pytest.param(
            [BRIEF, *ASKED, BEGUN],
            [*ASKED, YES | {"weight": 1}],
            ([BRIEF, *ASKED, BEGUN], [REST]),
            id="prefill repeated without the system message",
        ),
        pytest.param(
            [*ASKED, BEGUN],
            [*ASKED, BEGUN, REST],
            ([*ASKED, BEGUN], [REST]),
            id="prefill repeated as a message",
        ),
        pytest.param(
            [*ASKED, BEGUN], [YES], ([*ASKED, BEGUN], [YES]), id="prefill and another answer"
        ),
        pytest.param(
            ASKED, [CALLS | {"weight": 0}, WET, YES | {"weight": 1}],
            (ASKED, [*context(CALLS), WET, YES]), id="a weight of 0",
        ),
    ],
)  # fmt: skip
def test_a_response_beside_a_prompt(prompt, responses, expected):
    asked, response = expected
    found = read({"prompt": prompt, "chosen": responses, "rejected": [*responses[:-1], NO]}
                 if prompt[-1]["content"] != "Ye"
                 else {"prompt": prompt, "chosen": responses, "rejected": "No."})  # fmt: skip
    assert (found.prompt, found.chosen) == (asked, response)
    unpaired = read({"prompt": prompt, "completion": responses, "label": True})
    assert (unpaired.prompt, unpaired.chosen, unpaired.rejected) == (asked, response, None)


@pytest.mark.parametrize(
    "response",
    [[WET, YES], [CALLS, WET], [YES, AGAIN], [YES, AGAIN, YES], [BRIEF, YES]],
)
def test_a_response_beside_a_prompt_is_one_turn_of_the_assistant(response):
    with pytest.raises(RowFault) as caught:
        read({"prompt": ASKED, "chosen": response, "rejected": "No."})
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_MESSAGES, "chosen")
    asks_again = response == [YES, AGAIN, YES]
    assert ("--responses whole" in caught.value.detail) == asks_again
    if asks_again:
        found = read({"prompt": ASKED, "chosen": response, "rejected": "No."}, WHOLE)
        assert (found.chosen, found.rejected) == (response, [NO])


def test_a_prompt_can_be_one_question_of_two_conversations():
    talk = [BRIEF, FIRST, YES, *ASKED]
    for prompt in (FIRST["content"], ASKED[0]["content"], [FIRST], [BRIEF, FIRST]):
        found = read({"prompt": prompt, "chosen": [*talk, YES], "rejected": [*talk, NO]})
        assert (found.prompt, found.chosen, found.rejected) == (talk, [YES], [NO])
    with pytest.raises(RowFault, match="must begin with an assistant message"):
        read({"prompt": "Where?", "chosen": [*talk, YES], "rejected": [*talk, NO]})


@pytest.mark.parametrize(
    ("messages", "last", "whole"),
    [
        ([*ASKED, YES], (ASKED, [YES]), (ASKED, [YES])),
        ([*ASKED, CALLS, WET, YES], ([*ASKED, CALLS, WET], [YES]), (ASKED, [CALLS, WET, YES])),
        ([FIRST, YES, *ASKED, NO], ([FIRST, YES, *ASKED], [NO]), ([FIRST], [YES, *ASKED, NO])),
        ([YES, *ASKED, NO], ([YES, *ASKED], [NO]), ([YES, *ASKED], [NO])),
        ([*ASKED, YES, NO], (ASKED, [*context(YES), NO]), (ASKED, [YES, NO])),
    ],
)
def test_a_labelled_conversation(messages, last, whole):
    row = {"messages": messages, "label": False}
    assert read(row) == Preference(0, last[0], None, last[1])
    assert read(row, WHOLE) == Preference(0, whole[0], None, whole[1])


def test_a_response_with_nothing_trained_says_so():
    row = {"prompt": ASKED, "chosen": [CALLS | {"weight": 0}, WET, YES | {"train": False}]}
    with pytest.raises(RowFault, match="nothing is trained") as caught:
        read(row | {"rejected": [NO]})
    assert (caught.value.reason, caught.value.field) == (Reason.EMPTY_RESPONSE, "chosen")
    with pytest.raises(RowFault, match="is empty"):  # the text of a tool is not the policy's
        read(row | {"chosen": [assistant(""), WET, assistant(" ")], "rejected": [NO]})


def transcript(*turns: str) -> str:
    speakers = ("Human", "Assistant") * len(turns)
    return "".join(f"\n\n{who}: {turn}" for who, turn in zip(speakers, turns, strict=False))


TALK = transcript("Hi.", "Hello.", "Rain in Oslo?")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Rain in Oslo?", "chosen": "Yes.", "rejected": "No."}, ASKED),
        ({"prompt": "Rain in Oslo?", "chosen": [YES], "rejected": "No."}, ASKED),
        ({"prompt": TALK + "\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
         [FIRST, assistant("Hello."), *ASKED]),
        ({"chosen": TALK + "\n\nAssistant: Yes.", "rejected": TALK + "\n\nAssistant: No."},
         [FIRST, assistant("Hello."), *ASKED]),
        ({"chosen": "Be brief." + TALK + "\n\nAssistant: Yes.",
          "rejected": "Be brief." + TALK + "\n\nAssistant: No."},
         [BRIEF, FIRST, assistant("Hello."), *ASKED]),
        ({"chosen": "Rain in Oslo? Yes.", "rejected": "Rain in Oslo? No."}, ASKED),
        ({"prompt": "Rain in Oslo?", "chosen": "Yes.", "rejected": "No.", "system": "Be brief."},
         [BRIEF, *ASKED]),
        ({"prompt": ASKED, "chosen": [YES], "rejected": [NO]}, ASKED),
    ],
)  # fmt: skip
def test_text_as_chat_is_messages(row, prompt):
    found = read(row, ReadRules(as_chat=True))
    assert (found.prompt, found.chosen, found.rejected) == (prompt, [YES], [NO])
    if "prompt" in row:
        unpaired = {"completion": row["chosen"], "label": 1, **row}
        del unpaired["chosen"], unpaired["rejected"]
        found = read(unpaired, ReadRules(as_chat=True))
        assert (found.prompt, found.chosen, found.rejected) == (prompt, [YES], None)
    if isinstance(row["chosen"], str) and "system" not in row:
        assert isinstance(read(row).prompt, str)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": transcript("Hi.", ""), "rejected": transcript("Hi.", "Ha.")},
         Reason.EMPTY_RESPONSE),
        ({"chosen": transcript("Hi.", "Ho."), "rejected": transcript("Hi!", "Ha.")},
         Reason.PROMPTS_DIFFER),
        ({"chosen": transcript("Hi.", "Ho."), "rejected": transcript("Hi.", "Ha.", "No.")},
         Reason.BAD_MESSAGES),
        ({"chosen": "Yes.", "rejected": "No."}, Reason.EMPTY_PROMPT),
        ({"prompt": "\n\nHuman: \n\nAssistant:", "chosen": "a", "rejected": "b"},
         Reason.EMPTY_PROMPT),
    ],
)  # fmt: skip
def test_text_that_is_no_chat_is_quarantined(row, reason):
    with pytest.raises(RowFault) as caught:
        read(row, ReadRules(as_chat=True))
    assert caught.value.reason is reason
