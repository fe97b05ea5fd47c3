"""Arrow list columns <-> NumPy views, so a shard's values need no Python object per token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

View = NDArray[Any]


def views(column: pa.ChunkedArray) -> list[View | None]:
    """Return each list of a column as a view of its values; None for a null.

    Only the values of a column of booleans are copied, because Arrow stores them as bits.
    """
    found: list[View | None] = []
    for chunk in column.chunks:
        bits = pa.types.is_boolean(chunk.type.value_type)
        values = chunk.values.to_numpy(zero_copy_only=not bits)
        ends = chunk.offsets.to_numpy().tolist()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False).tolist()
        found += [
            values[start:end] if there else None
            for start, end, there in zip(ends, ends[1:], valid, strict=False)
        ]
    return found


def scored_lengths(ids: pa.Array, masks: pa.Array) -> NDArray[np.int64]:
    """Return the number of tokens that the policy writes in each response.

    Args:
        ids: list<int32> [rows].
        masks: list<bool> [rows] of the same lengths; null if the policy writes all tokens.

    Returns:
        int64 [rows]; 0 where there is no response.
    """
    found: NDArray[np.int64] = pc.fill_null(pc.list_value_length(ids), 0).to_numpy()
    found = found.astype(np.int64)
    if masks.null_count < len(masks):
        context = pc.list_parent_indices(masks).filter(pc.invert(masks.flatten()))
        found -= np.bincount(context.to_numpy(), minlength=len(found))
    return found


def scored_views(values: pa.ChunkedArray, masks: pa.ChunkedArray) -> list[View | None]:
    """Return the values of each response's tokens that the policy writes; None for a null.

    Args:
        values: a list column with one value per token.
        masks: list<bool>, of the same lengths; null if the policy writes all tokens.
    """
    every = views(values)
    if masks.null_count == len(masks):
        return every
    return [
        view if view is None or mask is None else view[mask]
        for view, mask in zip(every, views(masks), strict=True)
    ]


def list_column(parts: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Build a list column with one list per part, the inverse of `views`.

    Args:
        parts: NumPy arrays, `array` arrays or bytes of the column's value type; None becomes a
            null.
        type_: type of the column.

    Raises:
        TypeError: the values differ in size from the column's value type.
    """
    lengths = np.array([0 if part is None else len(part) for part in parts])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    present = [part for part in parts if part is not None]
    values = np.frombuffer(b"".join(present), type_.value_type.to_pandas_dtype())
    if len(values) != ends[-1]:
        raise TypeError(f"{ends[-1]} values that are not {type_.value_type}")
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()),
        pa.array(values, type_.value_type),
        type=type_,
        mask=pa.array([part is None for part in parts]),
    )
