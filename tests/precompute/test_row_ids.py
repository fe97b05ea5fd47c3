"""Row ids: decided by content, unique, and cheap to keep."""

from stages.precompute import row_ids
from stages.precompute.row_ids import RowIds


def test_the_same_tokens_have_the_same_id_whatever_stands_before():
    ids, others = RowIds(), RowIds()
    others.assign([9], [9], [9])
    assert ids.assign([1], [2, 3], [4]) == others.assign([1], [2, 3], [4])


def test_where_a_part_ends_counts():
    ids = RowIds()
    names = {
        ids.assign(*parts)
        for parts in [
            ([1], [2, 3], [4]), ([1, 2], [3], [4]), ([1], [2, 3, 4], []), ([1], [2, 3, 4], None),
            ([1], None, [2, 3, 4]), ([], [1, 2, 3, 4], None),
        ]
    }  # fmt: skip
    assert len(names) == 6
    assert not any("-" in name for name in names)


def test_copies_are_numbered_also_after_the_keys_were_sorted_away(monkeypatch):
    monkeypatch.setattr(row_ids, "_RECENT", 50)
    ids = RowIds()
    first = [ids.assign([number], [1], [2]) for number in range(500)]
    second = [ids.assign([number], [1], [2]) for number in range(500)]
    third = [ids.assign([number], [1], [2]) for number in range(500)]
    assert second == [f"{name}-1" for name in first]
    assert third == [f"{name}-2" for name in first]
    assert len({*first, *second, *third}) == 1500
