"""Labels read one way over a whole file; a kind of label that vanishes is an error for the file."""

import pytest

from reflogp.data_schemas.errors import InputError
from tests.precompute.conftest import save


def rows(*labels: object) -> list[dict[str, object]]:
    return [
        {"prompt": "Name a nut.", "completion": f"Nut {i}.", "label": label}
        for i, label in enumerate(labels)
    ]


@pytest.fixture
def read(load, tmp_path):
    def run(*labels: object, kind: str = "jsonl") -> list[bool | str]:
        """By row: whether it is good, or why it is in quarantine."""
        loaded = load(save(tmp_path / f"labels.{kind}", rows(*labels)), kl_completions=False)
        found = {row.source_row: row.chosen_ids is not None for row in loaded.rows}
        found |= {row["source_row"]: row["reason"] for row in loaded.set_aside}
        return [found[i] for i in range(len(labels))]

    return run


def test_words_and_numbers_are_labels(read):
    good = [True, 1, 1.0, "true", "True ", "1", "yes", "good", "chosen", "desirable"]
    bad = [False, 0, 0.0, "false", "FALSE", "0", "no", "bad", "rejected", "undesirable"]
    assert read(*good, *bad) == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_minus_one_is_bad_beside_one(read, kind):
    assert read(1, -1, 1, -1, kind=kind) == [True, False, True, False]


def test_minus_one_is_no_label_beside_zero(read):
    assert read(1, -1, 0) == [True, "wrong_type", False]
    assert read(1, "false", -1.0) == [True, False, "wrong_type"]


def test_a_zero_that_comes_after_minus_ones_were_taken_for_bad_is_an_error(read):
    with pytest.raises(InputError, match=r"1, 0 and -1"):
        read(1, -1, *[1] * 100, 0)


@pytest.mark.parametrize("odd", [0.8, 2, -2, [True], {"good": True}, "maybe", "", None, "nan"])
def test_what_is_no_label_is_quarantined(read, odd):
    found = read(True, odd, False)
    assert (found[0], found[2]) == (True, False)
    assert found[1] in {"wrong_type", "null_field"}


@pytest.mark.parametrize("labels", [(1, 2, 2), (1, None), (0, "thumbs up"), (False, 1.5)])
def test_a_label_that_vanishes_because_it_cannot_be_read_is_an_error(read, labels):
    with pytest.raises(InputError, match=r"no (good|bad) response is left: .* cannot be read"):
        read(*labels)


def test_a_label_that_vanishes_with_its_rows_is_an_error(load, tmp_path):
    found = rows(1, 0)
    found[1]["completion"] = " "
    with pytest.raises(InputError, match=r"no bad response is left: .*1 rows with a bad label"):
        load(save(tmp_path / "a.jsonl", found))


def test_a_file_of_one_label_is_as_it_is(read):
    assert read(1, 1, True) == [True] * 3
