"""Whole texts divide at the end of a word, in scripts with spaces and in those without."""

# ruff: noqa: RUF001 - Chinese has a question mark of its own

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.whole_texts import split_texts


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("法国的首都是", "巴黎。", "里昂。"),
        ("フランスの首都は", "パリです。", "リヨンです。"),
        ("ฝรั่งเศสมีเมืองหลวงชื่อ", "ปารีส", "ลียง"),
        ("我喜", "欢", "欢茶"),  # something is left of both
        ("用", "Python写", "Pytorch写"),  # a word of another script stays whole
        ("问：什么？\n答：", "甲", "乙"),
        ("The sky is", " blue.", " bluish."),
        ("か", "か\u3099", "き"),
    ],
)
def test_the_prompt_ends_where_a_word_ends(prompt, chosen, rejected):
    assert split_texts(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("巴黎。", "里昂。"), ("か\u3099x", "かy"), ("Lima.", "Lime."), ("好", "好的")],
)
def test_without_a_common_word_there_is_no_prompt(chosen, rejected):
    with pytest.raises(RowFault, match="no prompt"):
        split_texts(chosen, rejected)


words = st.text(
    st.sampled_from("ab 法国。かがき\u3099\u0e40\u0e01\u0e34\u200d\u0301👩\ufe0f"), max_size=12
)


@given(common=words, chosen=words, rejected=words)
def test_no_character_is_parted_from_its_marks(common, chosen, rejected):
    try:
        prompt, one, other = split_texts(common + chosen, common + rejected)
    except RowFault:
        assume(False)
    assert (prompt + one, prompt + other) == (common + chosen, common + rejected)
    for rest in (one, other):
        assert rest
        assert not unicodedata.category(rest[0]).startswith("M")
        assert rest[0] != "\u200d"
    assert one[0].isspace() or prompt[-1] not in {"\u0e40", "\u200d"}


@given(common=st.text("ab \n", max_size=15), chosen=st.text("ab ", max_size=5))
def test_the_prompt_of_texts_with_spaces_ends_before_a_space_that_both_share(common, chosen):
    try:
        prompt, one, other = split_texts(common + chosen, common + "c")
    except RowFault:
        assume(False)
    assert common.startswith(prompt)
    assert one[0].isspace()
    assert one[0] == other[0]
    assert not any(c.isspace() for c in common[len(prompt) :].lstrip())
