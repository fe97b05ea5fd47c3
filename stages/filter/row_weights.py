"""The weight in training of each row that stays, from one of its measures.

    confidence       x / (1 + x), x = max(confidence, 0) / scale; scale: median of those above 0
    similarity       1 - similarity
    length-ratio     1 / ratio
    reference-gap    1 / (1 + |gap| / scale); scale: median of those above 0

Each formula gives values from 0 to 1 and is monotonic, so it keeps the order of the rows. The
values are divided by their mean, and a row without the measure gets 1, the mean. The result is
multiplied by the row's earlier weight, and divided by the mean again: the weights of a cache have
mean 1, so a learning rate keeps its meaning.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.filtered import RowWeights
from reflogp.stages.diagnose.measures import Floats, Measures
from reflogp.stages.diagnose.similarity import similarities
from reflogp.stages.filter.config import WeightBy


class Weighted(NamedTuple):
    """Weights of rows, float64 [rows], of mean 1; and what is recorded of them."""

    values: Floats
    summary: RowWeights


def values_of(by: WeightBy, table: pa.Table, measures: Measures) -> Floats:
    """The measure of each row, float64 [rows]; NaN where a row has none.

    Args:
        by: its name.
        table: of all pairs for `similarity`.
        measures: of the rows of the table.
    """
    if by == "confidence":
        return measures.confidence
    if by == "similarity":
        return similarities(table, np.arange(table.num_rows))
    return measures.length_ratio if by == "length-ratio" else np.abs(measures.gap)


def earlier_weights(table: pa.Table) -> Floats:
    """The weights that rows have already, float64 [rows]."""
    found: Floats = pc.fill_null(table.column("weight"), 1.0).to_numpy()
    return found


def weighted(
    by: WeightBy | None, values: Floats, before: Floats, earlier: RowWeights | None
) -> Weighted:
    """The weights of all rows that stay.

    Args:
        by: what to weight by; None: keep the weights that the rows have.
        values: the measure of each, float64 [rows], NaN where a row has none.
        before: the weights that they have already, float64 [rows], 1 where there are none.
        earlier: what is recorded of those.

    Raises:
        InputError: every row would weigh nothing.
    """
    factors, scale, there = np.ones(len(before)), None, np.isfinite(values)
    if by is not None and there.any():
        scale = _scale(by, values[there])
        counted = _formula(by, values[there], scale)
        factors[there] = counted / (counted.mean() or 1.0)
    found = _over_mean(before * factors)
    summary = RowWeights(
        by=[*(earlier.by if earlier else []), *([by] if by else [])],
        scale=scale if by or earlier is None else earlier.scale,
        without=int((~there).sum()) if by else 0,
        zero=int((found == 0).sum()),
        least=float(found.min()),
        median=float(np.median(found)),
        most=float(found.max()),
        effective_rows=float(found.sum() ** 2 / (found**2).sum()),
    )
    return Weighted(found, summary)


def _formula(by: WeightBy, values: Floats, scale: float | None) -> Floats:
    """What the weights are proportional to, between 0 and 1, float64 [rows]."""
    unit = scale or 1.0
    if by == "confidence":
        sure = np.maximum(values, 0) / unit
        return np.asarray(sure / (1 + sure))
    if by == "similarity":
        return 1 - values
    return 1 / values if by == "length-ratio" else 1 / (1 + values / unit)


def _scale(by: WeightBy, values: Floats) -> float | None:
    """The median that is the measure's unit; None where the measure has one by itself."""
    if by not in ("confidence", "reference-gap"):
        return None
    positive = values[values > 0]
    return float(np.median(positive)) if len(positive) else None


def _over_mean(values: Floats) -> Floats:
    if not values.any():
        raise InputError(
            "every row that stays would weigh nothing: by --weight-by confidence, one of 0 or less "
            "does. Drop less, or weight by another measure."
        )
    return np.asarray(values / values.mean())
