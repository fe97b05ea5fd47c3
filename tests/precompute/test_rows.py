"""Source to token ids in one pass: every row is used or quarantined, with its reason, on disk."""

import functools
import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import Quarantine, RowFault
from tests.checkpoints import EXAMPLES
from tests.precompute.conftest import PAIR, assistant, save, user
from tests.precompute.test_tables import FORMS

LINE = json.dumps(PAIR)
LABELLED = {"question": "2 + 2 =", "good": " 4", "bad": " 5"}
MAPPING = {"prompt": "question", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def lines(tmp_path):
    def write(*rows: object) -> Path:
        path = tmp_path / "pairs.jsonl"
        found = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(found) + "\n", encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "form", "rows"),
    [
        ("preferences.jsonl", "prompt+chosen+rejected", 170),
        ("forms/text.jsonl", "prompt+chosen+rejected", 4),
        ("forms/text.csv", "prompt+chosen+rejected", 5),
        ("forms/conversations.jsonl", "chosen+rejected", 4),
        ("forms/sharegpt.json", "conversations+chosen+rejected", 4),
        ("forms/transcripts.jsonl", "chosen+rejected", 3),
        ("forms/unpaired.jsonl", "prompt+completion+label", 6),
        ("forms/scored.jsonl", "prompt+chosen+rejected", 4),
        ("forms/labelled_messages.jsonl", "prompt+completion+label", 2),
        ("forms/tool_steps.jsonl", "prompt+chosen+rejected", 3),
    ],
)
def test_every_example_file_loads_whole(name, form, rows, load):
    loaded = load(EXAMPLES / name)
    assert (loaded.form, loaded.read, loaded.set_aside) == (form, rows, [])


def test_every_file_of_examples_forms_is_among_them():
    names = {path.name for path in (EXAMPLES / "forms").iterdir()}
    assert names == {
        "text.jsonl", "text.csv", "conversations.jsonl", "sharegpt.json", "transcripts.jsonl",
        "unpaired.jsonl", "scored.jsonl", "labelled_messages.jsonl",
        "tool_steps.jsonl", *(f"{name}.jsonl" for name in FORMS),
    }  # fmt: skip


def test_a_column_to_keep_that_is_not_there_is_refused_with_those_that_are(load, lines):
    path = lines(PAIR | {"source": "hh"})
    with pytest.raises(InputError, match=r"pairs\.jsonl: --keep langage: .*rejected, source"):
        load(path, keep=("source", "langage"))


def test_what_is_kept_is_of_the_column_as_the_data_names_it(load, lines):
    row = {"source": "2 + 2 =", "chosen": " 4", "rejected": " 5", "prompt": "no prompt"}
    path = lines(row, row | {"prompt": "\ud800"}, {k: v for k, v in row.items() if k != "prompt"})
    loaded = load(path, columns={"prompt": "source"}, keep=("prompt", "source"))
    found = [{one["name"]: one["value"] for one in row.kept} for row in loaded.rows]
    assert [one["prompt"] for one in found] == ["no prompt", "\\ud800", None]
    assert {one["source"] for one in found} == {"2 + 2 ="}


def test_rows_set_aside_keep_their_place_reason_and_text(load, lines):
    null = PAIR | {"chosen": None, "note": "größer"}
    path = lines(PAIR, '{"prompt": "2', "", null, PAIR, PAIR | {"prompt": "\ud800"})
    loaded = load(path)
    assert [row.source_row for row in loaded.rows] == [0, 3]
    assert loaded.set_aside == [
        {
            "source_row": 1,
            "file": str(path),
            "line": 2,
            "reason": "broken_json",
            "field": None,
            "detail": "broken JSON: Unterminated string starting at: line 1 column 12 (char 11)",
            "row": '{"prompt": "2',
        },
        {
            "source_row": 2,
            "file": str(path),
            "line": 4,
            "reason": "null_field",
            "field": "chosen",
            "detail": "the field 'chosen' is null",
            "row": json.dumps(null, ensure_ascii=False),
        },
        {
            "source_row": 4,
            "file": str(path),
            "line": 6,
            "reason": "invalid_utf8",
            "field": "prompt",
            "detail": "'prompt' has half a surrogate pair: surrogates not allowed",
            "row": '{"prompt": "\\ud800", "chosen": " 4", "rejected": " 5"}',
        },
    ]


def test_the_counts_add_up_over_files_and_reasons(load, tmp_path):
    save(tmp_path / "a.jsonl", [PAIR, PAIR | {"rejected": ""}, PAIR | {"rejected": " 4"}])
    save(tmp_path / "b.csv", [PAIR, PAIR | {"rejected": ""}, PAIR | {"prompt": ""}])
    loaded = load(tmp_path)
    assert loaded.read == 6
    assert [(row.source_row, row.row_id[32:]) for row in loaded.rows] == [(0, ""), (3, "-1")]
    assert Counter(loaded.reasons) == {
        "empty_response": 1, "identical_responses": 1, "null_field": 2,
    }  # fmt: skip
    assert [(Path(row["file"]).name, row["line"]) for row in loaded.set_aside] == [
        ("a.jsonl", 2), ("a.jsonl", 3), ("b.csv", 2), ("b.csv", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "tsv.zst", "parquet", "arrow"]
)
def test_a_row_set_aside_is_named_by_its_place_in_every_kind_of_file(kind, load, tmp_path):
    rows = [PAIR | {"id": str(number)} for number in range(130)]
    for number in (3, 70, 129):
        rows[number]["rejected"] = " 4"  # the same as chosen
    save(tmp_path / f"a.{kind}", rows[:60])
    save(tmp_path / f"b.{kind}", rows[60:])
    places = [(Path(row["file"]).name, row["line"]) for row in load(tmp_path).set_aside]
    assert places == [(f"a.{kind}", 4), (f"b.{kind}", 11), (f"b.{kind}", 70)]


def test_a_row_of_a_saved_dataset_is_named_by_its_shard_and_split(load, tmp_path):
    rows = [PAIR] * 3 + [PAIR | {"rejected": " 4"}]
    saved = datasets.DatasetDict(test=datasets.Dataset.from_list(rows))
    saved.save_to_disk(tmp_path, num_shards={"test": 2})
    [row] = load(tmp_path, split="test").set_aside
    assert (Path(row["file"]).relative_to(tmp_path), row["line"]) == (
        Path("test/data-00001-of-00002.arrow"), 2,
    )  # fmt: skip


def test_a_table_of_labels_and_scores_loads_though_all_its_cells_are_text(load, tmp_path):
    row = {"prompt": "2 + 2 =", "completion": "4", "confidence": "0.5"}
    labels = ("True", "false", "1")
    loaded = load(save(tmp_path / "a.csv", [row | {"label": label} for label in labels]))
    assert [row.chosen_ids is None for row in loaded.rows] == [False, True, False]
    assert [row.confidence for row in loaded.rows] == [0.5] * 3


def test_more_rows_than_one_batch_of_the_quarantine_are_all_kept(load, lines):
    loaded = load(lines(PAIR, *[PAIR | {"chosen": ""}] * 2_500))
    assert Counter(loaded.reasons) == {"empty_response": 2_500}


def test_rows_under_the_least_confidence_are_set_aside(load, lines):
    scores = [0.9, 0.2, 0.5, None, "0.7"]
    loaded = load(lines(*(PAIR | {"confidence": s} for s in scores), PAIR), min_confidence=0.5)
    assert [row.confidence for row in loaded.rows] == [0.9, 0.5, 0.7]
    assert loaded.reasons == ["low_confidence", "bad_confidence", "bad_confidence"]
    assert loaded.set_aside[0]["detail"] == "confidence 0.2 is below 0.5"
    assert "--min-confidence is set" in loaded.set_aside[2]["detail"]


def test_rows_without_confidence_pass_where_none_is_asked_for(load, lines):
    loaded = load(lines(PAIR, PAIR | {"confidence": -3}))
    assert [row.confidence for row in loaded.rows] == [None, -3]


def test_rows_over_max_length_are_set_aside_as_truncate_says(load, lines):
    long = PAIR | {"prompt": "two " * 100, "chosen": " four" * 50}
    path = lines(PAIR, long)
    assert load(path, max_length=64).reasons == ["prompt_too_long"]
    assert load(path, max_length=64, truncate="never").reasons == ["too_long"]
    assert load(path, max_length=64, truncate="prompt").reasons == []


def test_mapped_columns_stand_under_their_standard_names(load, lines):
    expected = load(lines(PAIR)).rows
    assert load(lines(LABELLED), columns=MAPPING).rows == expected
    # also over a column that has the standard name already
    taken = LABELLED | {"prompt": "other", "chosen": "other"}
    assert load(lines(taken), columns=MAPPING).rows == expected


def test_two_columns_can_be_swapped(load, lines):
    swapped = load(lines(PAIR), columns={"chosen": "rejected", "rejected": "chosen"})
    [plain], [other] = load(lines(PAIR)).rows, swapped.rows
    assert (plain.chosen_ids, plain.rejected_ids) == (other.rejected_ids, other.chosen_ids)


def test_a_row_without_the_mapped_column_does_not_fall_back_on_another(load, lines):
    loaded = load(lines(LABELLED, PAIR | {"good": " 4", "bad": " 5"}), columns=MAPPING)
    assert [(row["reason"], row["field"]) for row in loaded.set_aside] == [
        ("missing_field", "prompt")
    ]


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ([LABELLED], MAPPING | {"rejected": "worse"},
         "--columns rejected=worse: there is no column 'worse'. The columns are bad, good, "
         "question."),
        ([LABELLED], {"promt": "question"}, "--columns promt=question: 'promt' is not a standard "
         "name. Use one of answers, better_response_id,"),
        ([LABELLED], {"prompt": "question"},
         "the columns bad, good, question match no input form. The forms are prompt+chosen+"
         "rejected"),
        ([{"text": "a", "id": 1}], {}, "the columns id, text match no input form."),
        ([{}], {}, "the columns (none) match no input form."),
        ([], {}, "the data set is empty. Check --data and --split."),
        (["", " "], {}, "the data set is empty."),
        (["{", "["], {}, "none of the first 2 rows can be read; line 1: broken JSON: Expecting "
         "property name"),
        (["[1]"], {}, "line 1: not a JSON object with named fields."),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used_gives_one_message(rows, columns, expected, load, lines):
    path = lines(*rows)
    with pytest.raises(InputError) as caught:
        load(path, columns=columns)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_faulty_rows_at_the_beginning_do_not_hide_the_form(load, lines):
    loaded = load(lines("{", "[]", {"id": 1}, PAIR, *["{"] * 3))
    assert loaded.form == "prompt+chosen+rejected"
    assert loaded.reasons == ["broken_json", "not_an_object", "missing_field"] + ["broken_json"] * 3


def test_the_form_is_sought_in_the_first_100_rows(load, lines):
    assert len(load(lines(*["{"] * 99, PAIR)).rows) == 1
    with pytest.raises(InputError, match="none of the first 100 rows can be read"):
        load(lines(*["{"] * 100, PAIR))


def test_the_summary_counts_reasons_and_shows_the_first_row(tmp_path):
    with Quarantine(tmp_path / "q.parquet") as quarantine:
        add = functools.partial(quarantine.add, source_row=3, file="a.jsonl", line=4, row="{")
        add(RowFault(Reason.BROKEN_JSON, None, "no end"))
        assert quarantine.summary() == (
            "1 row quarantined (broken_json 1); first: a.jsonl, line 4: no end"
        )
        for _ in range(2):
            add(RowFault(Reason.EMPTY_PROMPT, "prompt", "nothing"))
    assert quarantine.summary() == (
        "3 rows quarantined (empty_prompt 2, broken_json 1); first: a.jsonl, line 4: no end"
    )


def test_without_faults_the_quarantine_is_an_empty_file(tmp_path):
    with Quarantine(tmp_path / "q.parquet"):
        pass
    assert pq.read_table(tmp_path / "q.parquet").num_rows == 0


def test_after_an_error_no_quarantine_is_left(tmp_path):
    with pytest.raises(InputError), Quarantine(tmp_path / "q.parquet"):
        raise InputError("the source ends here")
    assert list(tmp_path.iterdir()) == []


# --- whatever a file holds -----------------------------------------------------------------------

NAMES = [*PAIR, "completion", "label", "messages", "conversations", "confidence", "system"]
words = st.sampled_from(
    ["", " ", "a", "a b", "a c", "\ud800", "\x00", "\n\nHuman: a\n\nAssistant: b"]
)
messages = st.lists(
    st.sampled_from(
        [user("a"), assistant("b"), assistant(""), {"from": "gpt", "value": "c"}, {"role": "x"},
         {"role": "\ud800", "content": "d"}, user("\ud800"), user("a") | {"name": ["b"]}]
    ),
    max_size=4,
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=3)
values = st.recursive(
    scalars | messages,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=6) | st.fixed_dictionaries(
    dict.fromkeys(PAIR, words | messages)
)
any_line = st.one_of(
    objects.map(lambda row: json.dumps(row).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
    st.just(LINE.encode()),
)


@given(
    content=st.lists(any_line, max_size=6).map(b"\n".join),
    suffix=st.sampled_from(["jsonl", "json"]),
)
@example(content=b"[" + b"[" * 100_000, suffix="json")
@example(
    content=LINE.encode() + b"\n" + b'{"prompt": "q", "chosen": "a", "rejected": 7e999}',
    suffix="json",
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_each_row_is_used_or_set_aside(content, suffix, load, tmp_path):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    try:
        loaded = load(path)  # asserts that the counts add up
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either outcome is right
    else:
        assert set(loaded.reasons) <= {str(reason) for reason in Reason}
        for row in loaded.rows:
            assert row.prompt_ids
            assert row.chosen_ids or row.rejected_ids
