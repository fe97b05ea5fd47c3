"""Reuses the log-probs of rows that an earlier cache has.

A row is addressed by its content: its id is a hash of its token ids and masks, and each shard names
the digest of the model and engine that scored it. If both are the same, a row keeps its log-probs,
whatever else has changed in the data or the rules. They come from any shard in the cache's folder,
of a sealed cache that is being replaced or of a killed run.
"""

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.data_schemas.cache_shard import SCORE_FIELDS, SHARD_SCHEMA, read_shard, unweighted
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import at_once, entries
from reflogp.data_schemas.row_id import CONTENT_DIGITS, content_keys
from reflogp.data_schemas.shard_origin import Origin, read_origin
from reflogp.stages.cache.shard_content import ANY, faults

_SCORES = [field.name for field in SCORE_FIELDS]


class ScoredRows:
    """Finds rows by content. Its index takes 12 bytes of memory per row.

    Attributes:
        method, device: how the rows were scored, according to the first shard.
    """

    def __init__(self, cache: Path, scoring: str, without: frozenset[str] = frozenset()) -> None:
        """Index the shards in `cache`.

        Args:
            cache: its folder.
            scoring: digest of model and engine (Inputs.scoring_digest).
            without: names of shards to ignore.
        """
        origins = dict(_shards(cache, scoring, without))
        self._files = list(origins)
        first = next(iter(origins.values()), None)
        self.method, self.device = (first.method, first.device) if first else ("", "")
        keys = [np.zeros(0, np.uint64), *at_once(_keys, self._files)]
        self._starts = np.cumsum([len(part) for part in keys])
        joined = np.concatenate(keys)
        keys.clear()
        order = np.argsort(joined, kind="stable")
        self._keys = joined[order]
        # position in all files together, which gives file and row; enough for 4 billion rows
        self._rows = order.astype(np.uint32)

    def __len__(self) -> int:
        return len(self._keys)

    def split(self, planned: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Split planned rows into known ones and those to score.

        Args:
            planned: rows of PLAN_SCHEMA.

        Returns:
            The known rows as SHARD_SCHEMA, and the others as PLAN_SCHEMA. A row with impossible
            scores is not known.
        """
        scores, where = self._find(planned.column("row_id").combine_chunks())
        known = planned.take(pa.array(where))
        for name in _SCORES:
            known = known.append_column(SHARD_SCHEMA.field(name), scores.column(name))
        known = unweighted(known)
        sound = np.ones(known.num_rows, bool)
        for fault in faults(known, ANY):
            sound &= ~fault.rows
        unknown = np.delete(np.arange(planned.num_rows), where[sound])
        return known.filter(pa.array(sound)), planned.take(pa.array(unknown))

    def _find(self, wanted: pa.StringArray) -> tuple[pa.Table, NDArray[np.int64]]:
        """Scores of known rows, and their positions in `wanted`."""
        keys = content_keys(wanted)
        places = np.searchsorted(self._keys, keys)
        hit = np.flatnonzero(places < len(self._keys))
        hit = hit[self._keys[places[hit]] == keys[hit]]
        rows = self._rows[places[hit]].astype(np.int64)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [SHARD_SCHEMA.empty_table().select(_SCORES)]
        where = [np.zeros(0, np.int64)]
        for file in np.unique(files):
            mine, inside = hit[files == file], rows[files == file] - self._starts[file]
            try:
                found = read_shard(self._files[file], ["row_id", *_SCORES]).take(pa.array(inside))
            except (InputError, IndexError, pa.ArrowException):
                continue  # damaged or replaced since it was indexed: its rows are scored again
            # 64-bit keys can collide, so compare the full hashes
            same = pc.equal(_content(found.column("row_id")), _content(wanted.take(pa.array(mine))))
            parts.append(found.filter(same).select(_SCORES).cast(parts[0].schema))
            where.append(mine[same.to_numpy().astype(bool)])
        return pa.concat_tables(parts), np.concatenate(where)


def in_planned_order(planned: pa.Table, rows: pa.Table) -> pa.Table:
    """Sort `rows` into the order of `planned`, which may have rows that `rows` lacks."""
    places = pc.index_in(planned.column("row_id"), value_set=rows.column("row_id").combine_chunks())
    return rows.take(places.drop_null())


def _shards(cache: Path, scoring: str, without: frozenset[str]) -> Iterator[tuple[Path, Origin]]:
    names = sorted(set(fnmatch.filter(entries(cache), "shard-*.parquet")) - without)
    paths = [cache / name for name in names]
    for path, found in zip(paths, at_once(read_origin, paths), strict=True):
        if found is not None and found[0].scoring == scoring:
            yield path, found[0]


def _keys(path: Path) -> NDArray[np.uint64]:
    """Content keys of a shard's rows; none if it is damaged, so its rows are scored again."""
    try:
        return content_keys(read_shard(path, ["row_id"]).column("row_id").combine_chunks())
    except (InputError, ValueError):
        return np.zeros(0, np.uint64)


def _content(row_ids: Any) -> Any:
    """The part of each row id that is a hash of the content."""
    return pc.utf8_slice_codeunits(row_ids, 0, CONTENT_DIGITS)
