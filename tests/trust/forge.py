"""A sealed cache -> the same with other content, and with checksums, counts and a seal that fit.

Whoever makes a cache up can do that much; so nothing of it may be taken for a sign of sound rows.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import RESPONSES, SHARD_SCHEMA, token_counts, total_tokens
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.row_id import content_hash
from reflogp.stages.cache.row_ids import packed
from reflogp.stages.cache.write_shard import describe

Row = dict[str, Any]
Rows = list[Row]
_PARTS = ("prompt", *RESPONSES)


def forge(
    cache: Path, folder: Path, change: Callable[[Rows], Any], *, shard: int = 0, **manifest: Any
) -> Path:
    """Copy `cache` to `folder` and change the rows of one shard.

    Args:
        cache: sealed.
        folder: does not exist.
        change: the rows, in place.
        shard: which one.
        manifest: fields of the manifest to replace.
    """
    shutil.copytree(cache, folder)
    path = folder / manifests.read(cache).shards[shard].file
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    schema = SHARD_SCHEMA.with_metadata(table.schema.metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    reseal(folder, **manifest)
    return folder


def reseal(folder: Path, **update: Any) -> Manifest:
    """Make the manifest fit whatever is in the folder's shards now."""
    manifest = manifests.read(folder)
    shards, totals = [], Counter[str]()
    for one in manifest.shards:
        table = pq.read_table(folder / one.file)
        totals.update(token_counts(table), rows=table.num_rows)
        tokens = total_tokens(table)
        shards.append(describe(folder / one.file, rows=table.num_rows, tokens=tokens))
    counts = manifest.counts.model_copy(update=dict(totals))
    changed = {"shards": shards, "counts": counts} | update
    return manifests.write(folder, manifest.model_copy(update=changed))


def rehash(row: Row) -> None:
    """Give a row the id that its token ids have now."""
    ids = [row[f"{part}_ids"] for part in _PARTS]
    parts = ids if ids[-1] is not None else ids[:-1]
    given = [row[f"{part}_mask"] for part in RESPONSES]
    masks = [None if one is None else bytes(one) for one in given]
    packed_parts = (None if one is None else packed(one) for one in parts)
    row["row_id"] = content_hash(*packed_parts, masks=masks).hex()


def rescore(row: Row, side: str, logp: float = -1.0) -> None:
    """Give a response log-probs, and a sum, that are right in themselves."""
    ids = row[f"{side}_ids"]
    row[f"ref_{side}_logps"] = None if ids is None else [logp] * len(ids)
    row[f"ref_{side}_logp_sum"] = None if ids is None else logp * len(ids)


def with_ids(part: str, ids: Sequence[int] | None, number: int = 0) -> Callable[[Rows], None]:
    """A change: the token ids of a part of a row, and all else as it then must be."""

    def change(rows: Rows) -> None:
        rows[number][f"{part}_ids"] = None if ids is None else list(ids)
        if part != "prompt":
            rescore(rows[number], part)
        rehash(rows[number])

    return change


def with_mask(side: str, mask: Sequence[bool], number: int = 0) -> Callable[[Rows], None]:
    """A change: the mask of a response, and the id and the sum that fit it; not the log-probs."""

    def change(rows: Rows) -> None:
        rows[number][f"{side}_mask"] = list(mask)
        rehash(rows[number])

    return change


def with_value(field: str, value: Any, number: int = 0) -> Callable[[Rows], None]:
    """A change: one value of a row, and nothing else."""

    def change(rows: Rows) -> None:
        rows[number][field] = value(rows[number][field]) if callable(value) else value

    return change
