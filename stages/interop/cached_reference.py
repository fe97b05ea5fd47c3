"""Sealed caches -> log pi_ref of any row, looked up by its token ids and masks.

A row's id in the cache is a hash of these, so only row ids are read. The index of a million
rows takes 32 MB of memory.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.location import location
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.row_id import content_hash, stored_hashes
from reflogp.stages.cache.columns import views
from reflogp.stages.cache.row_ids import cut_mask, packed
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.train.data.cached_pairs import shared_sums

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
MASKS = ("chosen_mask", "rejected_mask")
_SIDES = ("chosen", "rejected")
_SUMS = [f"ref_{side}_logp_sum" for side in _SIDES]

Keys = NDArray[np.bytes_]
"""A hash of each row's token ids and masks, S16."""


class CachedReference:
    """The log-probs of both responses of each row of one or more caches of one reference.

    Attributes:
        caches: folder and manifest of each.
    """

    def __init__(self, caches: Iterable[str | Path], ld_alpha: float | None = None) -> None:
        """Check the shards and index their rows.

        Args:
            caches: folders or URLs.
            ld_alpha: weigh the tokens that a response has beyond the length of its pair's shorter
                one by this (LD-DPO, Liu et al. 2024, 2409.06411); None: all count alike.

        Raises:
            InputError: a cache is not sealed, damaged, unpaired, weighted, or of another reference.
        """
        folders = [location(cache) for cache in caches]
        self.caches = [(folder, manifests.read(folder)) for folder in folders]
        _require_fitting(self.caches)
        keys, values = [], []
        for folder, manifest in self.caches:
            known = each_shard(folder, manifest, lambda _, table: _known(table, ld_alpha))
            for its_keys, sums in known:
                keys.append(its_keys)
                values.append(sums)
        joined = np.concatenate(keys)
        order = np.argsort(joined)
        self._keys = joined[order]
        self._values = np.concatenate(values)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Look rows up.

        Args:
            keys: [n], as `row_keys` makes them.

        Returns:
            float64 [n, 2], log pi_ref of chosen and rejected in nats, NaN where the row is not
            there; and bool [n], whether it is.
        """
        values = np.full((len(keys), 2), np.nan)
        places = np.searchsorted(self._keys, keys)
        within = np.flatnonzero(places < len(self._keys))
        hit = within[self._keys[places[within]] == keys[within]]
        values[hit] = self._values[places[hit]]
        found = np.zeros(len(keys), np.bool_)
        found[hit] = True
        return values, found


def row_keys(table: pa.Table, max_length: int | None) -> Keys:
    """What `CachedReference.find` knows each row by.

    Args:
        table: with list columns prompt_ids, chosen_ids and rejected_ids; it may have chosen_mask
            and rejected_mask too.
        max_length: most tokens of prompt and response; what is over is cut from the response.
    """
    rows = zip(*(views(table.column(name)) for name in IDS), strict=True)
    masks = zip(*(_masks(table, name) for name in MASKS), strict=True)
    return np.array(
        [_key(cut(row, max_length), its) for row, its in zip(rows, masks, strict=True)], "S16"
    )


def _masks(table: pa.Table, name: str) -> Sequence[NDArray[np.bool_] | None]:
    if name not in table.column_names or table.column(name).null_count == table.num_rows:
        return [None] * table.num_rows
    return views(table.column(name))


def _key(row: Sequence[NDArray[np.integer]], masks: Sequence[NDArray[np.bool_] | None]) -> bytes:
    marks = [
        cut_mask(None if mask is None else mask.tobytes(), len(ids))
        for ids, mask in zip(row[1:], masks, strict=True)
    ]
    return content_hash(*map(packed, row), masks=marks)


def cut(
    row: Sequence[NDArray[np.integer]], max_length: int | None
) -> tuple[NDArray[np.integer], ...]:
    """Prompt, chosen and rejected of a row, the responses without what is over `max_length`."""
    prompt, *responses = row
    room = None if max_length is None else max(0, max_length - len(prompt))
    return (prompt, *(response[:room] for response in responses))


def _known(table: pa.Table, ld_alpha: float | None) -> tuple[Keys, NDArray[np.float64]]:
    """What a shard's rows are known by, and their values."""
    return stored_hashes(table.column("row_id").combine_chunks()), _sums(table, ld_alpha)


def _sums(table: pa.Table, ld_alpha: float | None) -> NDArray[np.float64]:
    """log pi_ref of chosen and rejected of each row, float64 [rows, 2]."""
    sums = np.stack([table.column(name).to_numpy() for name in _SUMS], axis=1)
    if ld_alpha is None:
        return sums
    shared = shared_sums(table)
    weighed: NDArray[np.float64] = shared + ld_alpha * (sums - shared)
    return weighed


def _require_fitting(caches: Sequence[tuple[Path, Manifest]]) -> None:
    for folder, manifest in caches:
        if manifest.kind != "paired":
            raise InputError(
                f"{folder}: the cache is unpaired (prompt, completion, label); DPO needs chosen "
                "and rejected. Precompute a paired data set."
            )
        if manifest.row_weights is not None:
            raise InputError(
                f"{folder}: its rows have weights ({manifest.row_weights}), which TRL's trainer "
                "does not apply. Train with `reflogp train`, or filter without --weight-by."
            )
        first, mine = caches[0][1].inputs, manifest.inputs
        if (first.weights, first.adapter) != (mine.weights, mine.adapter):
            raise InputError(
                f"{caches[0][0]} and {folder}: the caches are of different references "
                f"({caches[0][1].reference.name}, {manifest.reference.name}). Precompute both "
                "under the checkpoint that training starts from."
            )
