"""Arrow list columns <-> numpy views: a shard's tokens and log-probs, without an object a token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

View = NDArray[Any]


def views(column: pa.ChunkedArray) -> list[View | None]:
    """Each list of a column as a view of its values, nothing copied; None where it is null."""
    found: list[View | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=True)
        ends = chunk.offsets.to_numpy().tolist()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False).tolist()
        found += [
            values[start:end] if there else None
            for start, end, there in zip(ends, ends[1:], valid, strict=False)
        ]
    return found


def list_column(parts: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """The inverse: one list a part, null where the part is None.

    Args:
        parts: arrays of NumPy or of Python, of the very values of the lists.
        type_: of the column.

    Raises:
        TypeError: the values are of another size.
    """
    lengths = np.array([0 if part is None else len(part) for part in parts])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    present = [part for part in parts if part is not None]
    values = np.frombuffer(b"".join(present), type_.value_type.to_pandas_dtype())
    if len(values) != ends[-1]:
        raise TypeError(f"{ends[-1]} values that are no {type_.value_type}")
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()),
        pa.array(values, type_.value_type),
        type=type_,
        mask=pa.array([part is None for part in parts]),
    )
