"""What the values of a kept column (source, language, ...) tell apart: sums over all rows.

Shard by shard a few sums a value, so that figures are of every row and memory does not grow.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.stages.diagnose.diagnosis import Group, Grouped
from reflogp.stages.diagnose.measures import Floats, Measures

MOST = 20
"""Different values of a column, from which on they are too many for a table."""

_SUMMED = ("rows", "good", "unequal", "longer", "preferred", "preferred_per_token", "gap")
Sums = dict[str | None, Floats]
"""By value, the sums of what _SUMMED names, float64 [7]."""


def kept_values(table: pa.Table, name: str) -> pa.Array:
    """What rows have in a column that the cache keeps, as text [rows]; null where they have none.

    Args:
        table: with the column `kept`.
        name: of the column in the data.
    """
    lists = table.column("kept").combine_chunks()
    pairs = lists.flatten()
    here = pc.equal(pc.struct_field(pairs, "name"), name)
    rows = pc.list_parent_indices(lists).filter(here).to_numpy()
    places = np.full(len(lists), -1)
    places[rows] = np.arange(len(rows))
    found = pc.struct_field(pairs, "value").filter(here)
    return found.take(pa.array(places, mask=places < 0))


def sums(table: pa.Table, measures: Measures, names: Iterable[str]) -> dict[str, Sums | None]:
    """The sums of a shard for each kept column; None of one that has too many values.

    Args:
        table: with the column `kept`.
        measures: of its rows.
        names: of the columns.
    """
    found: dict[str, Sums | None] = {}
    for name in names:
        encoded = kept_values(table, name).dictionary_encode(null_encoding="encode")
        values = encoded.dictionary.to_pylist()
        few = len(values) <= MOST
        found[name] = _sums(values, encoded.indices.to_numpy(), measures) if few else None
    return found


def _sums(values: list[str | None], which: NDArray[np.integer], measures: Measures) -> Sums:
    paired = (measures.chosen_tokens > 0) & (measures.rejected_tokens > 0)
    difference = measures.length_difference
    each = measures.chosen_per_token - measures.rejected_per_token
    counted = (
        np.ones(len(which)),
        measures.chosen_tokens > 0,
        paired & (difference != 0),
        paired & (difference > 0),
        preferred(measures.gap),
        preferred(each),
        np.nan_to_num(measures.gap),
    )
    totals = [np.bincount(which, np.asarray(one, float), len(values)) for one in counted]
    return dict(zip(values, np.stack(totals, axis=1), strict=True))


def preferred(gap: Floats) -> Floats:
    """1 where the reference prefers chosen, 1/2 where it is even, 0 of unpaired rows."""
    return np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))


def grouped(name: str, parts: Sequence[Sums | None], *, paired: bool) -> Grouped:
    """The table of one column, the most frequent values first; no rows if it has too many.

    Args:
        name: of the column.
        parts: its sums, of each shard.
        paired: whether the rows are pairs; of others only the labels are told apart.
    """
    totals: Sums = {}
    for part in parts:
        for value, found in (part or {}).items():
            totals[value] = totals[value] + found if value in totals else found
    if None in parts or len(totals) > MOST:
        return Grouped(column=name, groups=None)
    rows = sum(float(found[0]) for found in totals.values())
    groups = [_group(value, found.tolist(), rows, paired) for value, found in totals.items()]
    return Grouped(
        column=name, groups=sorted(groups, key=lambda group: (-group.rows, group.value or ""))
    )


def _group(value: str | None, totals: list[float], rows: float, paired: bool) -> Group:
    found = dict(zip(_SUMMED, totals, strict=True))
    own = found["rows"]
    return Group(
        value=value,
        rows=int(own),
        share=own / rows,
        share_good=None if paired else found["good"] / own,
        share_chosen_longer=found["longer"] / found["unequal"] if found["unequal"] else None,
        accuracy_sum=found["preferred"] / own if paired else None,
        accuracy_per_token=found["preferred_per_token"] / own if paired else None,
        mean_reference_gap=found["gap"] / own if paired else None,
    )
