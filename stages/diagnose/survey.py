"""One pass over the shards of a cache -> the facts that findings are made of, in flat memory.

Each row keeps 16 bytes: a key and the position in the data, to find repeated rows. About a million
random rows at most also keep their measures, and the responses of about 10,000 are compared token
by token. Taking every n-th row instead is wrong for periodic data: with a period of ten, it found
100% of the pairs near-identical when 10% were.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.sealed_file import Shard
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.diagnose.diagnosis import Grouped
from reflogp.stages.diagnose.groups import Sums, grouped, sums
from reflogp.stages.diagnose.keys import Keys, contradictory, mixed, repeated
from reflogp.stages.diagnose.measures import MEASURED, Floats, Measures, joined, measure
from reflogp.stages.diagnose.similarity import similarities

_MEASURED = 1_000_000
_COMPARED = 10_000


@dataclass(frozen=True)
class Facts:
    """What is known of a cache.

    Attributes:
        cache: where it is, as it is written in a command.
        kind: of its rows.
        kl: whether they have KL completions.
        rows, duplicates, contradictions, truncated: counts over all rows.
        measures: of all rows, or of some half a million to a million, the same each time.
        positions: of those in the cache, int64 [measured].
        similarity: of both responses, NaN where they were not compared, float64 [measured].
        grouped: all rows by the values of each kept column.
        weighted: whether the rows have weights, for training; nothing here counts them in.
    """

    cache: str
    kind: Literal["paired", "unpaired"]
    kl: bool
    rows: int
    duplicates: int
    contradictions: int
    truncated: int
    measures: Measures
    positions: NDArray[np.int64]
    similarity: Floats
    grouped: list[Grouped]
    weighted: bool

    @property
    def compared(self) -> Floats:
        """The similarities that are known, float64 [compared]."""
        return np.asarray(self.similarity[~np.isnan(self.similarity)])


class _Part(NamedTuple):
    """What is kept of a shard."""

    measures: Measures
    positions: NDArray[np.int64]
    similarity: Floats
    keys: Keys
    source_rows: NDArray[np.int64]
    truncated: int
    sums: dict[str, Sums | None]


def survey(cache: Path, manifest: Manifest, advance: Callable[[float], None]) -> Facts:
    """Read what is needed of every shard.

    Raises:
        InputError: a shard is missing or damaged, or a row is not sound.
    """
    rows = sum(shard.rows for shard in manifest.shards)
    every = -(-rows // _MEASURED)
    compared_every = every * -(-rows // (every * _COMPARED))
    ends = np.cumsum([shard.rows for shard in manifest.shards]).tolist()
    ends_of = {shard.file: end for shard, end in zip(manifest.shards, ends, strict=True)}
    paired = manifest.kind == "paired"
    keeps: list[str] = manifest.rules.get("keep", [])

    def look(shard: Shard, table: pa.Table) -> _Part:
        start = ends_of[shard.file] - shard.rows
        return _part(table, start, every, compared_every if paired else 0, keeps)

    columns = MEASURED + ["kept"] * bool(keeps)
    parts = []
    for part in each_shard(cache, manifest, look, columns):
        parts.append(part)
        advance(1)
    keys = np.concatenate([part.keys for part in parts])
    return Facts(
        cache=shlex.quote(str(cache)),
        kind=manifest.kind,
        kl=manifest.counts.kl_tokens > 0,
        rows=rows,
        weighted=manifest.row_weights is not None,
        duplicates=int(repeated(keys, np.concatenate([part.source_rows for part in parts])).sum()),
        contradictions=int(contradictory(keys).sum()),
        truncated=sum(part.truncated for part in parts),
        measures=joined([part.measures for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        similarity=np.concatenate([part.similarity for part in parts]),
        grouped=[grouped(name, [part.sums[name] for part in parts], paired=paired)
                 for name in keeps],
    )  # fmt: skip


def _part(table: pa.Table, start: int, every: int, compared_every: int, keeps: list[str]) -> _Part:
    whole = measure(table)
    lots = mixed(np.arange(start, start + table.num_rows, dtype=np.uint64))
    rows = np.flatnonzero(lots % np.uint64(every) == 0)
    similar = np.full(len(rows), np.nan)
    if compared_every:
        picked = np.flatnonzero(lots[rows] % np.uint64(compared_every) == 0)
        similar[picked] = similarities(table, rows[picked])
    return _Part(
        whole.take(rows), start + rows, similar, whole.key, whole.source_row,
        int(whole.truncated.sum()), sums(table, whole, keeps),
    )  # fmt: skip
