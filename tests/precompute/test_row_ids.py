"""Row ids: decided by content, unique, and cheap to keep."""

import numpy as np
import pyarrow as pa

from reflogp.data_schemas.row_id import content_hashes
from reflogp.stages.cache.row_ids import KeySet, RowIds, packed


def assign(ids: RowIds, *parts: list[int] | None) -> str:
    return ids.assign(*(None if part is None else packed(part) for part in parts))


def test_the_same_tokens_have_the_same_id_whatever_stands_before():
    ids, others = RowIds(), RowIds()
    assign(others, [9], [9], [9])
    assert assign(ids, [1], [2, 3], [4]) == assign(others, [1], [2, 3], [4])


def test_where_a_part_ends_counts():
    ids = RowIds()
    names = {
        assign(ids, *parts)
        for parts in [
            ([1], [2, 3], [4]), ([1, 2], [3], [4]), ([1], [2, 3, 4], []), ([1], [2, 3, 4], None),
            ([1], None, [2, 3, 4]), ([], [1, 2, 3, 4], None),
        ]
    }  # fmt: skip
    assert len(names) == 6
    assert not any("-" in name for name in names)


MASKED = [
    ([1], [2, 3], [4], None, None, None, None),
    ([1], [2, 3], [4], None, [0, 1], None, None),
    ([1], [2, 3], [4], None, [1, 0], None, None),
    ([1], [2, 3], [4, 5], None, None, [0, 1], None),
    ([1], [2, 3], [4, 5], None, [0, 1], [0, 1], None),
    ([1], [2, 3], None, [6, 7], None, None, [0, 1]),
    ([1], [2, 3], None, [6, 7], [0, 1], None, [0, 1]),
]


def test_masks_count_and_a_shard_is_checked_by_the_same_hash():
    ids = [
        RowIds().assign(
            *(None if part is None else packed(part) for part in (row[:4] if row[3] else row[:3])),
            masks=[None if mask is None else bytes(mask) for mask in row[4:]],
        )
        for row in MASKED
    ]
    assert len({*ids}) == len(MASKED)
    assert ids[0] == assign(RowIds(), [1], [2, 3], [4])
    columns = [*zip(*MASKED, strict=True)]
    parts = [pa.array(column, pa.list_(pa.int32())) for column in columns[:4]]
    flags = [[c and [bool(bit) for bit in c] for c in column] for column in columns[4:]]
    masks = [pa.array(column, pa.list_(pa.bool_())) for column in flags]
    assert [name.hex() for name in content_hashes(parts, masks)] == ids


def test_copies_are_numbered():
    ids = RowIds()
    first, second, third = (
        [assign(ids, [number], [1], [2]) for number in range(500)] for _ in range(3)
    )
    assert second == [f"{name}-1" for name in first]
    assert third == [f"{name}-2" for name in first]
    assert len({*first, *second, *third}) == 1500


def test_a_set_of_keys_knows_each_wherever_it_stands_among_others():
    numbers = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64).tolist()
    close = [2**63 + number for number in (5, 0, 9, 3, 2**40)]  # all in one bucket
    keys, there = KeySet(), {0, 2**64 - 1, *numbers, *close}
    assert all(keys.add(key) for key in there)
    assert not any(keys.add(key) for key in there)
    assert all(keys.add(key + 1) for key in close if key + 1 not in there)
