"""Rows of a cache's shard -> rows of an export."""

from collections.abc import Callable

import pyarrow as pa

from reflogp.data_schemas.export import PARQUET_SCHEMA, TRL_SCHEMA, ExportFormat
from reflogp.stages.cache.columns import views

DecodeAll = Callable[[list[list[int]]], list[str]]

SCHEMAS: dict[ExportFormat, pa.Schema] = {"parquet": PARQUET_SCHEMA, "trl": TRL_SCHEMA}


def export_table(shard: pa.Table, form: ExportFormat, decode: DecodeAll) -> pa.Table:
    """The rows of a shard in the form of an export, in the same order.

    Args:
        shard: rows of SHARD_SCHEMA; for `trl` all of them with both responses.
        form: which columns.
        decode: many lists of token ids to their texts.
    """
    columns = {name: shard.column(name) for name in shard.column_names}
    for part in ("prompt", "chosen", "rejected"):
        columns[part] = _texts(shard.column(f"{part}_ids"), decode)
    if form == "trl":
        for side in ("chosen", "rejected"):
            columns[f"ref_{side}_logps"] = columns[f"ref_{side}_logp_sum"]
    schema = SCHEMAS[form]
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _texts(ids: pa.ChunkedArray, decode: DecodeAll) -> pa.Array:
    lists = views(ids)
    texts = iter(decode([list_.tolist() for list_ in lists if list_ is not None]))
    return pa.array([None if list_ is None else next(texts) for list_ in lists], pa.string())
