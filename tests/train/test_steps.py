"""The order of the data, and how the pairs of a step are shared out."""

import random
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.held_out import held_out
from reflogp.stages.train.data.steps import ShuffledBatches, passes
from reflogp.stages.train.loop.metrics import Means


def pair(length: int, prompt: int = 0) -> Pair:
    ids = np.arange(length, dtype=np.int32)
    return Pair(np.array([prompt], np.int32), ids, ids, 0.0, 0.0)


def test_each_epoch_has_every_row_once_in_an_order_of_its_own():
    batches = ShuffledBatches(10, 4, seed=7)
    first = list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(row for batch in first for row in batch) == list(range(10))
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first


def test_the_order_of_the_data_does_not_touch_the_random_state():
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    list(ShuffledBatches(100, 4, seed=7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_processes_share_a_steps_pairs_with_every_pair_counted_once(rows, processes):
    pairs = [pair(length) for length in range(2, 2 + rows)]
    found = [passes(pairs, 2, process, processes) for process in range(processes)]
    assert len({len(own) for own in found}) == 1  # none waits for another
    counted = [one for own in found for one in own if one.fraction]
    lengths = sorted(len(p.chosen_ids) for one in counted for p in one.pairs)
    assert lengths == list(range(2, 2 + rows))
    for one in counted:
        assert one.fraction == pytest.approx(len(one.pairs) / rows)
    assert sum(one.fraction for one in counted) == pytest.approx(1)


def test_pairs_of_like_length_go_together():
    pairs = [pair(length) for length in (9, 2, 8, 3)]
    lengths = [[len(p.chosen_ids) for p in one.pairs] for one in passes(pairs, 2)]
    assert lengths == [[9, 8], [3, 2]]


def test_no_way_to_cut_the_pairs_makes_a_smaller_largest_pass():
    generator = random.Random(0)
    for _ in range(50):
        size, rows = generator.randint(1, 4), generator.randint(1, 9)
        pairs = [pair(generator.randint(1, 60)) for _ in range(rows)]
        found = passes(pairs, size)
        assert len(found) == -(-rows // size)
        lengths = sorted((p.distinct_tokens for p in pairs), reverse=True)
        ways = (
            [lengths[start:end] for start, end in pairwise([0, *cuts, rows])]
            for passes in range(1, -(-rows // size) + 1)
            for cuts in combinations(range(1, rows), passes - 1)
        )
        least = min(max(len(part) * part[0] for part in way) for way in ways)
        assert max(len(s.pairs) * s.pairs[0].distinct_tokens for s in found) == least


def test_a_loss_that_compares_pairs_gets_as_many_in_each_pass():
    pairs = [pair(length) for length in (50, 2, 3, 4, 5)]
    assert [len(one.pairs) for one in passes(pairs, 2)] == [1, 2, 2]
    assert [len(one.pairs) for one in passes(pairs, 2, even=True)] == [2, 2, 1]


def test_pairs_of_one_prompt_are_held_out_together():
    pairs = [pair(3, prompt=row // 4) for row in range(40)]
    trained, evaluated = held_out(pairs, 0.25, seed=1)
    assert len(evaluated) == 12  # of ten prompts of four, the third one reaches a quarter
    assert sorted([*trained, *evaluated]) == list(range(40))
    assert not {row // 4 for row in trained} & {row // 4 for row in evaluated}
    assert held_out(pairs, 0.25, seed=1) == (trained, evaluated)
    assert held_out(pairs, 0.25, seed=2) != (trained, evaluated)
    assert list(map(list, held_out(pairs, 0.0, seed=1))) == [list(range(40)), []]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_rows():
    pairs = [pair(3, prompt=row) for row in range(20)]
    _, evaluated = held_out(pairs, 0.3, seed=1)
    _, backwards = held_out(pairs[::-1], 0.3, seed=1)
    assert sorted(19 - row for row in backwards) == list(evaluated)


def test_means_are_over_pairs_and_not_over_batches():
    means = Means()
    means.add({"a": torch.tensor([1.0, 2.0, 3.0])})
    means.add({"a": torch.tensor([10.0])})
    means.add({"a": torch.tensor([])})
    assert means.take(lambda sums: 2 * sums) == {"a": 4.0}
    assert means.take() == {}
