"""Tables of several responses to a prompt become pairs by a stated rule; ties are counted."""

from pathlib import Path
from typing import Any

import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.precompute.config import DataConfig, PrecomputeConfig
from reflogp.stages.precompute.tokens.reader import Reader
from tests.checkpoints import EXAMPLES
from tests.precompute.conftest import assistant, save, tokenizer_of, trained_tokenizer, user

AB = {"prompt": "Q:", "response_a": " A", "response_b": " B", "winner": "a"}
SIGNED = {"context": "Q:", "response1": " 1", "response2": " 2", "overall_preference": -2}
NUMBERED = {"prompt": "Q:", "response_0": " 0", "response_1": " 1", "better_response_id": 1}
POST = {"info": {"post": "p"}, "summaries": [{"text": " s"}, {"text": " t"}], "choice": 0}
LISTED = {
    "instruction": "Q:",
    "completions": [
        {"response": " A", "overall_score": "7", "fine-grained_score": 1},
        {"response": " B", "overall_score": 5.5, "fine-grained_score": 2},
    ],
}
TALK = {"messages": [user("Q"), assistant("A")], "rejected_response": "B"}
COMMON = "Is ice lighter than water?"


def scored(*scores: Any) -> dict[str, Any]:
    """A row whose responses are ` r0`, ` r1`, ... with these scores."""
    texts = [f" r{i}" for i in range(len(scores))]
    return {"prompt": "Q:", "responses": texts, "scores": list(scores)}


def per_row(prompt: str | None, *scores: Any) -> list[dict[str, Any]]:
    """Rows with the responses ` r0`, ` r1`, ... to one prompt."""
    return [
        {"prompt": prompt, "response": f" r{i}", "score": score} for i, score in enumerate(scores)
    ]


def said(ids: Any) -> str:
    return str(trained_tokenizer().decode(list(ids)))


def chat(*turns: str) -> str:
    """The prompt of `user`, `assistant`, ... turns as the tokenizer's template renders it."""
    roles = ("user", "assistant") * len(turns)
    parts = [
        f"<|im_start|>{role}\n{turn}<|im_end|>\n" for role, turn in zip(roles, turns, strict=False)
    ]
    return "".join(parts) + "<|im_start|>assistant\n"


@pytest.fixture
def read(load, tmp_path):
    """The pairs of a source as "chosen > rejected", their confidence, and what is quarantined."""

    def run(*rows: Any, **options: Any) -> tuple[list[str], list[float | None], list[Any]]:
        loaded = load(save(tmp_path / "a.jsonl", rows), **options)
        pairs = [
            " >".join(
                said(ids).removesuffix("<|im_end|>") for ids in (row.chosen_ids, row.rejected_ids)
            )
            for row in loaded.rows
        ]
        return pairs, [row.confidence for row in loaded.rows], loaded.set_aside

    return run


# Of each file: options, the number of rows and of ties, then prompt, responses and confidence of
# the first pair.
FORMS: dict[str, tuple[dict[str, Any], int, int, str, str, str, float | None]] = {
    "signed_preference": (
        {}, 2, 1, chat("How long do I boil an egg for a soft yolk?"),
        "Six minutes from boiling water, then cold water so that it stops cooking.",
        "Boil it until it is done.", 3,
    ),
    "better_id": (
        {}, 2, 0, "My neighbour's dog barks all night. What can I do?",
        "Talk to the neighbour first, and note the times. If nothing changes, ask the town which "
        "rules hold at night.", "Bark back, louder.", None,
    ),
    "arena": (
        {}, 2, 1, chat("Write a title for a blog post about compost."), "From Peel to Soil",
        "Compost", None,
    ),
    "winner": (
        {}, 2, 0, "Shorten: 'due to the fact that'.", "because", "since the fact", None,
    ),
    "summaries": (
        {}, 2, 0,
        "SUBREDDIT: r/gardening\n\nTITLE: Tomatoes split\n\nPOST: I water my tomatoes once a week, "
        "a lot at a time. After each watering some of them split. What am I doing wrong?\n\nTL;DR:",
        " Tomatoes split after a big weekly watering; asks what is wrong.", " Tomatoes.", None,
    ),
    "chosen_response": (
        {}, 2, 0, "Give one use for an old jar.", "Keep screws in it, sorted by size.",
        "Throw it away.", 2.5,
    ),
    "rejected_response": (
        {}, 2, 0,
        "<|im_start|>system\nYou are brief.<|im_end|>\n" + chat("Can cats eat chocolate?"),
        "No, it is poisonous to them.", "A little now and then is fine.", None,
    ),
    "rejected_messages": (
        {}, 2, 0, chat("Which planet has the most moons?"),
        "Saturn, with more than a hundred known ones.", "The Earth, of course.", None,
    ),
    "completions": (
        {}, 2, 0, "Explain photosynthesis in one sentence.",
        "Plants turn light, water and carbon dioxide into sugar and oxygen.",
        "It is what plants do at night.", 8,
    ),
    "ranked_answers": (
        {}, 2, 0, "\n\nHuman: Which month is the shortest?\n\nAssistant:", " February.", " June.",
        None,
    ),
    "responses_and_scores": (
        {}, 2, 0, "A synonym of 'quick'?\n", "fast, rapid or swift", "slow", 0.8,
    ),
    "a_response_per_row": (
        {}, 2, 1, "Is glass a liquid?",
        "No, it is an amorphous solid. Old panes are uneven because of how they were made.",
        "Yes, that is why old windows are thicker at the bottom.", 3,
    ),
    "text_prompt_and_conversations": (
        {}, 2, 0, chat("What is a haiku?"),
        "A short poem, in English often of 5, 7 and 5 syllables.", "A fish.", 7,
    ),
    "system_and_question": (
        {"columns": {"prompt": "question"}, "as_chat": True}, 2, 0,
        "<|im_start|>system\nYou are a careful assistant.<|im_end|>\n"
        + chat("Sort these words: pear, apple, fig."), "apple, fig, pear", "pear, fig, apple", None,
    ),
    "first_question_and_conversations": (
        {}, 2, 0, chat("Recommend a book on birds.", "For Europe or America?", "Europe."),
        "The Collins Bird Guide.", "Any book will do.", None,
    ),
    "conversations_and_texts": (
        {}, 2, 0, chat("用一句话介绍长城。"), "长城是中国古代修建的军事防御工程。",
        "长城是一条河。", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_file_in_each_public_form_loads_as_it_is(name, load):
    options, rows, ties, prompt, chosen, rejected, confidence = FORMS[name]
    loaded = load(EXAMPLES / "forms" / f"{name}.jsonl", **options)
    assert (len(loaded.rows), loaded.reasons) == (rows, ["tie"] * ties)
    row = loaded.rows[0]
    found = [said(ids) for ids in (row.prompt_ids, row.chosen_ids, row.rejected_ids)]
    end = "<|im_end|>\n" if found[0].startswith("<|im_start|>") else "<|im_end|>"
    assert found == [prompt, chosen + end, rejected + end]
    assert row.confidence == (confidence if confidence is None else pytest.approx(confidence))


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("best-worst", ["r2 > r1"]),
        ("adjacent", ["r2 > r0", "r0 > r3", "r3 > r1"]),
        ("all", ["r2 > r0", "r2 > r3", "r2 > r1", "r0 > r3", "r0 > r1", "r3 > r1"]),
    ],
)
def test_pair_says_which_responses_become_pairs(pair, expected, read):
    for rows in ([scored(3, 1, 4, 1.5)], per_row("Q:", 3, 1, 4, 1.5)):
        pairs, confidence, aside = read(*rows, pair=pair)
        assert [found.strip() for found in pairs] == expected
        assert confidence[0] == {"best-worst": 3}.get(pair, 1)
        assert aside == []


@pytest.mark.parametrize(
    ("pair", "kept", "ties"),
    [
        ("best-worst", [" r0 > r1"], 0),
        ("adjacent", [" r2 > r1"], 1),
        ("all", [" r0 > r1", " r2 > r1"], 1),
    ],
)
def test_ties_are_quarantined_pair_by_pair_with_their_row(pair, kept, ties, read):
    row = scored(2, 1, 2)
    pairs, _, aside = read(scored(5, 5), row, pair=pair)
    assert pairs == kept
    assert [(one["reason"], one["field"], one["line"]) for one in aside] == [
        ("tie", "scores", 1), *[("tie", "scores", 2)] * ties,
    ]  # fmt: skip
    assert '"scores": [5, 5]' in aside[0]["row"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (AB, " A > B"), (AB | {"winner": "model_b"}, " B > A"), (AB | {"winner": "B "}, " B > A"),
        (AB | {"winner": "tie (bothbad)"}, None), (AB | {"winner": "both_bad"}, None),
        (SIGNED, " 1 > 2"), (SIGNED | {"overall_preference": "3"}, " 2 > 1"),
        (SIGNED | {"overall_preference": 0}, None),
        (NUMBERED, " 1 > 0"), (NUMBERED | {"better_response_id": "0"}, " 0 > 1"),
        (POST, " s > t"), (POST | {"choice": 1}, " t > s"),
        (POST | {"summaries": {"text": [" s", " t"], "policy": ["x", "y"]}}, " s > t"),
        (LISTED, " A > B"),
    ],
)  # fmt: skip
def test_a_verdict_says_which_response_is_chosen(row, expected, read):
    pairs, _, aside = read(row, row, pair="all")
    assert [*pairs, *(one["reason"] for one in aside)] == [expected or "tie"] * 2


@pytest.mark.parametrize(
    ("row", "other", "reason", "field"),
    [
        (AB, {"winner": "c"}, "wrong_type", "winner"),
        (AB, {"winner": 1}, "wrong_type", "winner"),
        (AB, {"winner": None}, "null_field", "winner"),
        (AB, {"response_b": None}, "null_field", "response_b"),
        (AB, {"response_b": " A"}, "identical_responses", "chosen"),
        (NUMBERED, {"better_response_id": 2}, "wrong_type", "better_response_id"),
        (SIGNED, {"overall_preference": "better"}, "bad_confidence", "overall_preference"),
        (SIGNED, {"context": []}, "empty_prompt", "prompt"),
        (POST, {"info": "p"}, "wrong_type", "info"),
        (POST, {"info": {"post": None}}, "empty_prompt", "prompt"),
        (POST, {"summaries": [" s", " t"]}, "wrong_type", "summaries"),
        (POST, {"summaries": [{"text": " s"}, {"note": " t"}]}, "missing_field", "text"),
        (LISTED, {"completions": []}, "missing_field", "completions"),
        (LISTED, {"completions": LISTED["completions"][:1]}, "missing_field", "completions"),
        (scored(1, 2), {"scores": [1]}, "wrong_type", "scores"),
        (scored(1, 2), {"scores": [1, None]}, "null_field", "scores"),
        (scored(1, 2, 3), {"responses": [" A", None, " B"]}, "null_field", "responses"),
        (scored(1, 2), {"scores": [1, "N/A"]}, "bad_confidence", "scores"),
        (TALK, {"messages": "Q"}, "wrong_type", "messages"),
        (TALK, {"rejected_response": ""}, "empty_response", "rejected"),
    ],
)
def test_a_row_of_a_table_that_cannot_be_used_says_why_and_where(row, other, reason, field, read):
    pairs, _, aside = read(row, row | other)
    assert len(pairs) == 1
    assert [(one["reason"], one["field"], one["line"]) for one in aside] == [(reason, field, 2)]


def test_adjacent_rows_of_a_prompt_belong_together(read):
    rows = [*per_row("a", 1, 2), *per_row("b", 5), *per_row("a", 4, 3), *per_row(None, 1, 2)]
    pairs, _, aside = read(*rows)
    assert pairs == [" r1 > r0", " r0 > r1"]
    assert [(one["reason"], one["line"]) for one in aside] == [
        ("missing_field", 3), ("null_field", 6), ("null_field", 7),
    ]  # fmt: skip


def test_a_tie_of_rows_is_quarantined_with_all_of_them(read):
    _, _, aside = read(*per_row("a", 1, 2), *per_row("b", 5, 5))
    assert [(one["source_row"], one["line"]) for one in aside] == [(2, 3)]
    assert aside[0]["row"].count('"prompt": "b"') == 2


def test_other_columns_can_take_the_names_of_a_table(read):
    row = {"question": "Q:", "one": " A", "two": " B", "better": "b", "source": "mine"}
    names = {"prompt": "question", "response_a": "one", "response_b": "two", "winner": "better"}
    assert read(row, columns=names)[0] == [" B > A"]
    safer = NUMBERED | {"safer_response_id": 0}
    assert read(safer, columns={"better_response_id": "safer_response_id"})[0] == [" 0 > 1"]


def test_chosen_and_rejected_go_before_a_table(read):
    row = LISTED | {"prompt": "Q:", "chosen": " c", "rejected": " d"}
    assert read(row, ignore=["instruction"])[0] == [" c > d"]
    assert read(row, ignore=["chosen", "rejected", "prompt"])[0] == [" A > B"]


def test_text_beside_a_table_that_may_be_its_prompt_is_an_error(read):
    with pytest.raises(InputError, match="'context' has text"):
        read(AB | {"context": "Once upon a time."})


def test_a_sample_takes_all_rows_of_every_nth_prompt(tmp_path):
    rows = [row for prompt in "abcd" for row in per_row(prompt, 1, 2)]
    config = DataConfig(reference="x", data=str(save(tmp_path / "a.jsonl", rows)))
    with Quarantine(tmp_path / "quarantine.parquet") as aside:
        reader = Reader(config, aside)
        found = [*reader.tokenized(tokenizer_of(trained_tokenizer()), lambda amount: None, every=2)]
    assert [said(row.prompt_ids) for row in found] == ["a", "c"]
    assert reader.read == 4
    assert not aside.reasons


def test_the_default_of_pair_leaves_the_fingerprint_of_older_caches():
    config = PrecomputeConfig(reference="x", data="y", cache=Path("z"))
    assert "pair" not in config.rules()
    other = config.model_copy(update={"pair": "all"})
    assert other.rules() == config.rules() | {"pair": "all"}
