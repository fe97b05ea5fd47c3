"""Keys, similarity and statistics against the plain way to compute each."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.stages.cache.columns import scored_lengths
from reflogp.stages.correlation import pearson, spearman
from reflogp.stages.diagnose.histograms import counts, edges
from reflogp.stages.diagnose.keys import contradictory, list_keys, pair_keys, repeated
from reflogp.stages.diagnose.similarity import similarities, similarity

IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
few_tokens = st.lists(st.integers(0, 3), max_size=12)


def ids(*lists):
    return pa.array(lists, IDS)


def common(one, other):
    """The textbook's table."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


@given(few_tokens, few_tokens)
def test_similarity_is_the_share_of_the_longest_common_subsequence(one, other):
    found = similarity(np.array(one, np.int32), np.array(other, np.int32))
    total = len(one) + len(other)
    assert found == (2 * common(one, other) / total if total else 1.0)


@given(st.lists(st.tuples(few_tokens, few_tokens), min_size=1, max_size=6), st.floats(0, 1))
def test_a_similarity_is_given_as_0_only_if_it_is_under_the_limit(pairs, least):
    none = pa.nulls(len(pairs), pa.list_(pa.bool_()))
    table = pa.table({"chosen_ids": ids(*(c for c, _ in pairs)), "chosen_mask": none,
                      "rejected_ids": ids(*(r for _, r in pairs)), "rejected_mask": none}
    )  # fmt: skip
    found = similarities(table, np.arange(len(pairs)), least)
    for value, (chosen, rejected) in zip(found, pairs, strict=True):
        truth = similarity(np.array(chosen, np.int32), np.array(rejected, np.int32))
        assert value == truth or (value == 0 and truth < least)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=30))
def test_lists_have_equal_keys_if_and_only_if_they_are_equal(lists):
    keys = list_keys(ids(*lists)).tolist()
    assert len(set(keys)) == len(set(map(tuple, lists)))
    # a slice of an array has an offset
    assert list_keys(ids([7], *lists).slice(1)).tolist() == keys


def test_a_swapped_pair_has_the_same_key_but_for_the_lowest_bit():
    prompts, one, other = ids([1], [1], [2], [3]), ids([2], [3], [1], [2]), ids([3], [2], [3], [1])
    keys = pair_keys(prompts, one, other)
    assert keys[0] ^ keys[1] == 1
    assert len(set((keys >> np.uint64(1)).tolist())) == 3  # prompt and responses do not mix
    unpaired = pair_keys(ids([1], [1]), ids([2], None), ids(None, [2]))
    assert unpaired[0] ^ unpaired[1] == 1


def test_a_mask_makes_another_key_and_only_marked_tokens_are_measured():
    marks = pa.array([None, [True, False, True], [False, True, True]], pa.list_(pa.bool_()))
    tokens = ids([5, 6, 7], [5, 6, 7], [5, 6, 7])
    keys = list_keys(tokens, marks)
    assert len(set(keys.tolist())) == 3
    assert keys[0] == list_keys(tokens)[0]
    assert scored_lengths(tokens, marks).tolist() == [3, 2, 2]
    table = pa.table({"chosen_ids": tokens, "chosen_mask": marks,
                      "rejected_ids": ids([5, 7], [5, 7], [5, 7]),
                      "rejected_mask": pa.nulls(3, marks.type)})  # fmt: skip
    assert similarities(table, np.arange(3)).tolist() == [4 / 5, 1.0, 2 / 4]


def test_the_first_in_the_data_is_no_repetition_wherever_it_stands_in_the_cache():
    keys = np.array([8, 6, 8, 8, 9, 2], np.uint64)
    assert repeated(keys, np.array([5, 0, 1, 3, 4, 2])).tolist() == [1, 0, 0, 1, 0, 0]
    assert contradictory(keys).tolist() == [1, 0, 1, 1, 1, 0]
    none = np.zeros(0, np.uint64)
    assert not repeated(none, np.zeros(0, np.int64)).size
    assert not contradictory(none).size


def test_correlations_are_what_they_are_called():
    x, y = np.array([1.0, 2, 2, 3, 10]), np.array([2.0, 1, 3, 3, 4])
    assert pearson(x, y) == pytest.approx(12.2 / np.sqrt(53.2 * 5.2))
    # ranks 1 2.5 2.5 4 5 and 2 1 3.5 3.5 5
    assert spearman(x, y) == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1]
    )
    assert spearman(x, x**3) == pytest.approx(1)
    assert pearson(x, np.ones(5)) is None
    assert spearman(x[:2], y[:2]) is None


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=200), st.sampled_from([0.0, 1.0]))
def test_a_histogram_counts_every_value_once(values, quantum):
    floats = np.array(values, float)
    borders = edges(floats, quantum)
    assert sum(counts(floats, borders)) == len(values)
    assert (np.diff(borders) > 0).all()
    assert len(borders) < 60
