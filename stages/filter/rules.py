"""Rows of a shard -> the first rule that each breaks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.diagnose.groups import kept_values
from reflogp.stages.diagnose.measures import Measures
from reflogp.stages.diagnose.similarity import similarities
from reflogp.stages.filter.config import FilterRules

Mask = NDArray[np.bool_]
Values = NDArray[np.float64] | NDArray[np.int64]


class Marks(NamedTuple):
    """What a row's shard does not tell: bool [rows] each."""

    contradictory: Mask
    repeated: Mask


class _Check(NamedTuple):
    """The rows that break a rule, and what is wrong with one of them."""

    reason: Reason
    field: str | None
    broken: Mask
    detail: Callable[[int], str]


def breaches(
    rules: FilterRules, table: pa.Table, measures: Measures, marks: Marks
) -> dict[int, RowFault]:
    """What is wrong with rows of a shard, by position; the others stay.

    Args:
        rules: in force.
        table: with the columns of measures.COLUMNS, and `kept` for the rule `only`.
        measures: of its rows.
        marks: of its rows.
    """
    found: dict[int, RowFault] = {}
    for check in _checks(rules, table, measures, marks):
        _add(found, check)
    for name, value in rules.only.items():
        values = kept_values(table, name)
        same = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)
        _add(found, _other_value(name, values, value, same))
    if rules.max_similarity is not None:
        # the expensive one, so only of rows that are still there
        rows = np.setdiff1d(np.arange(table.num_rows), np.fromiter(found, int, len(found)))
        most, alike = rules.max_similarity, np.zeros(table.num_rows)
        alike[rows] = np.nan_to_num(similarities(table, rows, most))
        _add(found, _over(Reason.TOO_SIMILAR, "similarity", alike, most))
    return found


def _add(found: dict[int, RowFault], check: _Check) -> None:
    for row in map(int, np.flatnonzero(check.broken)):
        if row not in found:
            found[row] = RowFault(check.reason, check.field, check.detail(row))


def _checks(
    rules: FilterRules, table: pa.Table, measures: Measures, marks: Marks
) -> Iterator[_Check]:
    if rules.drop_contradictions:
        yield _Check(Reason.CONTRADICTION, None, marks.contradictory,
                     lambda _: "the pair is there with the opposite preference, too")  # fmt: skip
    if rules.drop_duplicates:
        masks = [table.column(f"{side}_mask") for side in ("chosen", "rejected")]
        yield _Check(Reason.DUPLICATE, None, marks.repeated,
                     lambda row: "a row before it has the same token ids" + " and masks"
                     * any(mask[row].is_valid for mask in masks))  # fmt: skip
    if rules.drop_truncated:
        yield _Check(Reason.TRUNCATED, None, measures.truncated,
                     lambda _: "a response lost its end to max_length")  # fmt: skip
    if rules.min_confidence is not None:
        values = measures.confidence
        yield _Check(Reason.BAD_CONFIDENCE, "confidence", np.isnan(values),
                     lambda _: "there is no confidence or score")  # fmt: skip
        low = _under(Reason.LOW_CONFIDENCE, "confidence", values, rules.min_confidence)
        yield low._replace(field="confidence")
    gap, difference = np.abs(measures.gap), np.abs(measures.length_difference)
    if rules.min_reference_gap is not None:
        yield _under(Reason.REFERENCE_GAP, "reference gap", gap, rules.min_reference_gap)
    for reason, what, found, most in (
        (Reason.REFERENCE_GAP, "reference gap", gap, rules.max_reference_gap),
        (Reason.LENGTH_DIFFERENCE, "length difference", difference, rules.max_length_difference),
        (Reason.LENGTH_RATIO, "length ratio", measures.length_ratio, rules.max_length_ratio),
    ):
        if most is not None:
            yield _over(reason, what, found, most)
    if rules.min_logp_per_token is not None:
        for side, means in (
            ("chosen", measures.chosen_per_token),
            ("rejected", measures.rejected_per_token),
        ):
            what = f"mean log-prob of a token of {side}"
            check = _under(Reason.LOW_LOGP, what, means, rules.min_logp_per_token)
            yield check._replace(field=side)


def _other_value(name: str, values: pa.Array, wanted: str, same: Mask) -> _Check:
    return _Check(Reason.OTHER_VALUE, name, ~same,
                  lambda row: f"{name} is {values[row].as_py()!r}, not {wanted!r}")  # fmt: skip


def _under(reason: Reason, what: str, values: Values, least: float) -> _Check:
    """Rows whose value is under `least`; NaN, where a row has none, is not."""
    return _Check(reason, None, values < least,
                  lambda row: f"{what} {values[row]:.4g} is under {least:g}")  # fmt: skip


def _over(reason: Reason, what: str, values: Values, most: float) -> _Check:
    """Rows whose value is over `most`; NaN is not."""
    return _Check(reason, None, values > most,
                  lambda row: f"{what} {values[row]:.4g} is over {most:g}")  # fmt: skip
