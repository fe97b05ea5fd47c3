"""Valid files and values -> broken ones: by structure, by type, by byte."""

import copy
import gzip
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from reflogp.data_schemas.errors import ReflogpError

T = TypeVar("T")

# `make fuzz` sets it; without it the cases are few and always the same.
_CASES = os.environ.get("FUZZ_CASES")


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a property over broken input, and set how often it is tried."""
    often = settings(
        max_examples=int(_CASES or 30),
        derandomize=_CASES is None,
        suppress_health_check=list(HealthCheck),
    )
    return pytest.mark.fuzz(often(test))


_TEXTS = ["", " ", "\0", "\ufeff", "\ud800", "a\udc80", "\x1b[31m", "[/red]", "<|im_end|>", "</s>",
          "\n\nHuman: a\n\nAssistant:", "{{ 7 }}", "nan", "null", "../../etc/passwd", "a\\b", ".",
          "..", "C:x", "x" * 3_000, "é" * 200, "\u202e", "🌍", "0x10", "1e999",
          "true"]  # fmt: skip
_NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 5e-324, 1.8e308,
            float("nan"), float("inf"), float("-inf")]  # fmt: skip
# stand for what is nested so deep that only text can hold it; see to_json
_DEPTHS = {f'"@{depth}"': "[" * depth + "]" * depth for depth in (200, 300, 900, 100_000)}
_BYTES = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\n", b"\r", b'"', b"'",
          b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b"[" * 100_000, b'{"a":' * 20_000,
          b"9" * 5_000, b"1e999", b"NaN", b"-", b"&a ", b"*a", b"!!bool ", b"!!int ",
          b"0000-99-99 ", b"%", b"\t", b"---\n", b"|", b"\x1f\x8b\x08\x00", b"PAR1",
          b"\x7f" * 8]  # fmt: skip

texts = st.one_of(st.sampled_from(_TEXTS), st.text(st.characters(), max_size=20))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.floats(),
    st.sampled_from([mark.strip('"') for mark in _DEPTHS]),
    texts,
)


values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
"""Anything that JSON can hold, and half surrogate pairs, which only its escapes can."""


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value` with up to three of its parts replaced, removed, doubled or renamed."""
    whole = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(0, 3))):
        holder, key = draw(st.sampled_from(list(_places(whole))))
        change = draw(st.sampled_from(["replace", "remove", "double", "rename"]))
        if change == "replace" or holder is whole:
            holder[key] = draw(st.one_of(_like(holder[key]), values))
        elif isinstance(holder, list):
            holder[key : key + 1] = [] if change == "remove" else [holder[key]] * 2
        elif change == "remove":
            del holder[key]
        elif change == "double":
            holder[draw(texts)] = holder[key]
        else:
            holder[draw(texts)] = holder.pop(key)
    return whole[0]


@st.composite
def reworded(draw: st.DrawFn, value: Any) -> Any:
    """`value` with up to three of its texts and numbers made odd: what a check of types lets by."""
    whole = [copy.deepcopy(value)]
    leaves = [(h, k) for h, k in _places(whole) if isinstance(h[k], (str, int, float))]
    for holder, key in draw(st.lists(st.sampled_from(leaves), max_size=3)):
        holder[key] = draw(_like(holder[key]))
    return whole[0]


def _like(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, str):
        return texts
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return values
    kind = type(value)
    return st.sampled_from([number for number in _NUMBERS if isinstance(number, kind)])


def _places(holder: Any) -> Any:
    """Every container within `holder`, itself included, with each of its keys."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with up to four bytes or pieces of it changed, put in, taken out or cut off."""
    for _ in range(draw(st.integers(0, 4))):
        # formats keep their directory at the end
        first = draw(st.sampled_from([0, max(0, len(content) - 1_000)]))
        start = draw(st.integers(first, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        change = draw(st.sampled_from(["flip", "put", "take", "double", "cut"]))
        if change == "flip":
            flipped = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in content[start:][:1])
            content = content[:start] + flipped + content[start + 1 :]
        elif change == "put":
            piece = draw(st.one_of(st.sampled_from(_BYTES), st.binary(max_size=8)))
            content = content[:start] + piece + content[start:]
        elif change == "take":
            content = content[:start] + content[end:]
        elif change == "double":
            content = content[:end] + content[start:]
        else:
            content = content[:start]
    return content


@st.composite
def gzipped(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` compressed, and the result damaged."""
    return draw(damaged(gzip.compress(content, mtime=0)))


def to_json(value: Any, *, ascii_only: bool) -> bytes:
    """`value` as JSON, which need not be valid UTF-8, with the depths that it names."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    for mark, deep in _DEPTHS.items():
        text = text.replace(mark, deep)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def json_file(draw: st.DrawFn, value: Any) -> bytes:
    """`value` mutated or reworded, as JSON, which is then damaged or not."""
    change = draw(st.sampled_from([mutated, reworded]))
    content = to_json(draw(change(value)), ascii_only=draw(st.booleans()))
    return draw(damaged(content)) if draw(st.booleans()) else content


def outcome(read: Callable[[], T]) -> T | None:
    """What `read` gives; None where it ends with a message for people. All else fails the test."""
    try:
        found = read()
    except ReflogpError as error:
        message = str(error)
    else:
        event("read")  # how many are, `--hypothesis-show-statistics` says
        return found
    assert 10 < len(message) < 3_000, message[:3_000]
    return None
