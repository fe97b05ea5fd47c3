"""Explains why a row is not in a cache: finds the most similar row, and what differs.

It runs only before an error, so it can take the time to read the whole cache.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Prefix

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.columns import views
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import limits_of
from reflogp.stages.interop.cached_reference import IDS

Ids = NDArray[np.integer]
Decode = Callable[[list[int]], str]

_PARTS = ("prompt", "chosen", "rejected")
# Tokens of a response that another template leaves as they are, and another limit does not cut.
_WORDS = slice(2, 10)
_SHOWN = 6
_OWN_ROWS = (
    "train on the cache's own rows: leave train_dataset out, or give "
    "reflogp.open(CACHE).to_dataset()"
)


class _Kin(NamedTuple):
    """A row of a cache that is like the one that was looked for."""

    ids: tuple[Ids, ...]
    cut: tuple[bool, ...]
    source_row: int
    max_length: Any


def explain(
    row: Sequence[Ids],
    max_length: int | None,
    caches: Sequence[tuple[Path, Manifest]],
    decode: Decode,
) -> tuple[str, str]:
    """What is different about a row that is not there, and what to do about it.

    Args:
        row: int32 token ids of prompt, chosen and rejected, cut to `max_length`.
        max_length: of prompt and response, or None.
        caches: folder and manifest of each.
        decode: token ids to text.
    """
    kin = max(_kins(row, caches), key=lambda kin: _likeness(row, kin), default=None)
    if kin is None:
        aside = sum(manifest.counts.quarantined for _, manifest in caches)
        return (
            f"no row there has its prompt or its responses ({aside:,} rows were quarantined "
            "when the cache was made)",
            "Precompute the very data that you train on, with the same tokenizer and chat template",
        )
    different = [n for n in range(3) if not np.array_equal(row[n], kin.ids[n])]
    if not different:
        return (
            f"row {kin.source_row} of the cache's data has its tokens, but a mask says that the "
            "policy does not write all of them, and TRL would train on all",
            f"To have the masks, {_OWN_ROWS}",
        )
    what, remedy = _difference(different[0], row, kin, max_length, decode)
    return f"row {kin.source_row} of the cache's data is like it, but {what}", remedy


def _difference(
    number: int, row: Sequence[Ids], kin: _Kin, max_length: int | None, decode: Decode
) -> tuple[str, str]:
    """What differs in part `number` of the two rows, and what to do."""
    part, ours, theirs, truncated = _PARTS[number], row[number], kin.ids[number], kin.cut[number]
    same = Prefix.similarity(ours.tolist(), theirs.tolist())
    if part == "prompt" and truncated:
        return (
            f"there its prompt lost its beginning to --max-length {kin.max_length}",
            f"TRL does not cut prompts: {_OWN_ROWS}",
        )
    if truncated and same == len(theirs):
        return (
            f"there its {part} response was cut to {same} tokens by --max-length {kin.max_length}, "
            f"and here it has {len(ours)} (DPOConfig(max_length={max_length}))",
            f"Set DPOConfig(max_length={kin.max_length})",
        )
    if part != "prompt" and same == len(ours) and len(row[0]) + same == max_length:
        return (
            f"here its {part} response is cut to {same} tokens by DPOConfig(max_length="
            f"{max_length}), and there it has {len(theirs)} (--max-length {kin.max_length})",
            f"Set DPOConfig(max_length={kin.max_length})",
        )
    here, there = (decode(ids[same : same + _SHOWN].tolist()) for ids in (ours, theirs))
    what = f"its {part} differs at token {same}: {here!r} here, {there!r} there"
    if part == "prompt":
        return what, f"Use the cache's tokenizer, chat template and system prompt, or {_OWN_ROWS}"
    return what, (
        "Tokenizer, template or data are not the cache's, or TRL tokenizes this text differently "
        f"(docs/data.md says where): {_OWN_ROWS}"
    )


def _kins(row: Sequence[Ids], caches: Sequence[tuple[Path, Manifest]]) -> Iterator[_Kin]:
    """The rows that could be the same preference."""
    flags = [f"{part}_truncated" for part in _PARTS]
    for folder, manifest in caches:
        for shard in manifest.shards:
            columns = ["source_row", *IDS, *flags]
            table = sealed_shard(folder, shard, limits_of(manifest), columns)
            rows = zip(*(views(table.column(name)) for name in IDS), strict=True)
            for number, ids in enumerate(rows):
                if _is_like(row, ids):
                    yield _Kin(
                        tuple(ids),
                        tuple(table.column(flag)[number].as_py() for flag in flags),
                        table.column("source_row")[number].as_py(),
                        manifest.rules.get("max_length"),
                    )


def _is_like(row: Sequence[Ids], other: Sequence[Ids]) -> bool:
    """Whether two rows have the same prompt, or both responses share some of their words."""
    if np.array_equal(row[0], other[0]):
        return True
    words = [ids[_WORDS].tobytes() for ids in row[1:]]
    pairs = zip(words, other[1:], strict=True)
    return any(words) and all(some in ids.tobytes() for some, ids in pairs)


def _likeness(row: Sequence[Ids], kin: _Kin) -> int:
    return sum(
        Prefix.similarity(ours.tolist(), theirs.tolist())
        for ours, theirs in zip(row, kin.ids, strict=True)
    )
