"""Where each row of the data stands is known from a few numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.data_schemas import reading
from reflogp.data_schemas.reading import Columns, Notice, Remark, Whereabouts, locate, place

files = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=30), min_size=1, max_size=4)


@given(files=files, every=st.integers(1, 3))
def test_each_row_is_found_where_it_stands(files, every):
    """Files whose rows stand one to three lines apart, of which every n-th row is read."""
    rows = []
    for number, gaps in enumerate(files):
        line = 0
        for gap in gaps:
            line += gap
            rows.append((f"{number}.jsonl", line))
    found = Whereabouts()
    for row in range(0, len(rows), every):
        found.add(row, *rows[row])
    for row in range(0, len(rows), every):
        assert locate(found.parts, row) == rows[row]


def test_rows_at_an_even_distance_are_one_part():
    found = Whereabouts()
    for row in range(1_000):
        found.add(row, "a.jsonl", 3 + 2 * row)
    assert len(found.parts) == 1
    assert locate(found.parts, 999) == ("a.jsonl", 2_001)


def test_beyond_so_many_parts_lines_are_unknown_and_files_are_not(monkeypatch):
    monkeypatch.setattr(reading, "_MOST_PARTS", 3)
    found = Whereabouts()
    lines = [1, 5, 6, 11, 23, 24, 31]
    for row, line in enumerate(lines):
        found.add(row, "a.jsonl", line)
    found.add(len(lines), "b.jsonl", 1)
    places = [locate(found.parts, row) for row in range(len(lines))]
    assert all(line in (0, lines[row]) for row, (_, line) in enumerate(places))
    assert places[-1] == ("a.jsonl", 0)
    assert locate(found.parts, len(lines)) == ("b.jsonl", 0)
    assert len(found.parts) <= 5


def test_a_row_before_all_parts_is_nowhere():
    assert locate([], 3, "data") == ("data", 0)


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("a.jsonl", 3, "a.jsonl, line 3"),
        ("x/a.NDJSON.gz", 3, "x/a.NDJSON.gz, line 3"),
        ("a.csv", 3, "a.csv, row 3"),
        ("owner/name", 3, "owner/name, row 3"),
        ("a.jsonl", 0, "a.jsonl"),
    ],
)
def test_a_place_says_lines_where_there_are_lines(file, line, expected):
    assert place(file, line) == expected


def test_columns_and_notices_read_as_a_line():
    columns = Columns(used={"prompt": "a+b", "chosen": "chosen"}, kept=["c"], not_used=["d", "e"])
    assert str(columns) == "used: prompt (from a+b), chosen; kept: c; not used: d, e"
    notice = Notice(remark=Remark.CONTROL_TOKENS, noticed=2, file="a.jsonl", line=7, detail="</s>")
    assert str(notice).startswith("2 rows: the text contains names of special tokens")
    assert str(notice).endswith("first: a.jsonl, line 7: </s>")
