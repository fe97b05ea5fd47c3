"""Arrow list columns <-> NumPy views, so a shard's values need no Python object per token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
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
