"""Single rows of a sealed cache: the first ones of the source, or those that are named."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.data_schemas import row_id
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import at_once
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import limits_of

Row = dict[str, Any]
"""The columns of SHARD_SCHEMA as Python values."""

_Place = tuple[int, int, int]  # source row, shard, position in the shard


def first_rows(cache: Path, manifest: Manifest, most: int) -> list[Row]:
    """Return the first rows of a sealed cache in the order of the source, at most `most`.

    Raises:
        InputError: a shard is missing or damaged.
    """

    def first(table: pa.Table) -> NDArray[np.int64]:
        order: NDArray[np.int64] = np.argsort(table.column("source_row").to_numpy(), kind="stable")
        return order[:most]

    return _read(cache, manifest, sorted(_places(cache, manifest, first))[:most])


def named_rows(cache: Path, manifest: Manifest, names: Sequence[str]) -> list[Row]:
    """Return the rows with these ids or source rows, in the order of the source.

    Raises:
        InputError: a name is neither an id nor a number, or no row has it; or a shard is missing or
            damaged.
    """
    ids = {name for name in names if re.match(row_id.PATTERN, name)}
    others = [name for name in names if name not in ids]
    for name in others:
        if not re.fullmatch(r"[0-9]{1,18}", name):
            raise InputError(
                f"--row {name}: neither the id of a row nor its number in the source, from 0."
            )
    numbers = {int(name) for name in others}

    def named(table: pa.Table) -> NDArray[np.int64]:
        by_id = pc.is_in(table.column("row_id"), pa.array(sorted(ids), pa.string()))
        by_number = np.isin(table.column("source_row").to_numpy(), sorted(numbers))
        return np.flatnonzero(by_number | by_id.to_numpy())

    rows = _read(cache, manifest, sorted(_places(cache, manifest, named)))
    found = {row["row_id"] for row in rows} | {row["source_row"] for row in rows}
    if missing := sorted(ids - found) + sorted(map(str, numbers - found)):
        raise InputError(
            f"--row {missing[0]}: the cache has no such row. Quarantined rows are shown with "
            "--quarantine."
        )
    return rows


def _places(
    cache: Path, manifest: Manifest, chosen: Callable[[pa.Table], NDArray[np.int64]]
) -> Iterator[_Place]:
    """Yield the place of each chosen row; `chosen` gets the ids and source rows of a shard."""
    names = ["row_id", "source_row"]
    tables = at_once(lambda shard: read_shard(cache / shard.file, names), manifest.shards)
    for number, table in enumerate(tables):
        positions = chosen(table)
        sources = table.column("source_row").to_numpy()[positions]
        for source_row, position in zip(sources.tolist(), positions.tolist(), strict=True):
            yield source_row, number, position


def _read(cache: Path, manifest: Manifest, places: Sequence[_Place]) -> list[Row]:
    """Read the rows at these places, from shards that are checked completely."""
    limits = limits_of(manifest)
    rows: dict[_Place, Row] = {}
    for number in sorted({number for _, number, _ in places}):
        table = sealed_shard(cache, manifest.shards[number], limits)
        there = [place for place in places if place[1] == number]
        found = table.take([position for *_, position in there]).to_pylist()
        rows |= zip(there, found, strict=True)
    return [rows[place] for place in places]
