"""A library's error becomes one line that has its cause."""

from pathlib import Path

import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import cause, loading


def chained(outer: str, inner: str) -> Exception:
    try:
        try:
            raise OSError(inner)
        except OSError as error:
            raise ValueError(outer) from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one thing"), "one thing"),
        (ValueError("Error(s) in loading:\n\tsize mismatch for a.b\n"),
         "Error(s) in loading: size mismatch for a.b"),
        (chained("An error occurred.", "No such file: x"), "An error occurred: No such file: x"),
        (chained("failed: disk is full", "disk is full"), "failed: disk is full"),
        (chained("", "the cause"), "ValueError: the cause"),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_all_lines_and_the_cause_of_an_error_are_kept(error, said):
    assert cause(error) == said


def test_a_long_error_keeps_its_beginning_and_its_end():
    said = cause(ValueError("begin " + "x" * 5000 + " end"))
    assert len(said) < 600
    assert said.startswith("begin")
    assert said.endswith("end")


def test_a_failure_to_load_says_where_and_why():
    with (
        pytest.raises(InputError, match=r"^m: the model cannot be loaded: outer: inner\. Check"),
        loading("model", Path("m")),
    ):
        raise chained("outer", "inner")
