"""A sealed cache -> the rows that the losses need, or an error that says why they do not fit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import Subset

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.train.data.cached_pairs import CachedPairs, Pair
from reflogp.stages.train.data.cached_unpaired import CachedUnpaired, Unpaired
from reflogp.stages.train.losses.objective import unpaired, uses
from reflogp.stages.train.losses.registry import EVERY_LOSS, LOSSES, UNPAIRED_LOSSES

Row = Pair | Unpaired


class CachedRows(Protocol):
    """Pairs or unpaired rows by position: all or some rows of a cache."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


def cached_rows(
    cache: Path, manifest: Manifest, losses: Iterable[str], limits: Limits | None = None
) -> CachedPairs | CachedUnpaired:
    """The rows of a cache, with the columns that the losses need. The losses must fit the cache.

    Args:
        cache: folder of the cache.
        manifest: its manifest.
        losses: their names.
        limits: that the rows must satisfy; default: those in the manifest.

    Raises:
        InputError: a shard is missing or damaged, or a row is invalid.
    """
    names = list(losses)
    if unpaired(names):
        return CachedUnpaired(cache, manifest, kl=uses(names, "kl"), limits=limits)
    return CachedPairs(cache, manifest, tokens=uses(names, "tokens"), limits=limits)


def longest(rows: CachedRows) -> list[Row]:
    """The rows with the longest sequences in the whole cache of `rows`, held-out rows included."""
    cache: Any = rows.dataset if isinstance(rows, Subset) else rows
    return [cache[row] for row in cache.longest()] if len(cache) else []


def require_fitting(cache: Path, manifest: Manifest, losses: Iterable[str]) -> None:
    """Refuse a cache that does not have what the losses need.

    Raises:
        InputError: the cache holds pairs and the losses take unpaired rows, or the reverse; a loss
            needs KL completions and the cache has none; or the cache has weights and a loss
            compares pairs with each other. The message names the losses that fit.
    """
    names = list(losses)
    said = f"the loss {names[0]}" if len(names) == 1 else f"the losses {', '.join(names)}"
    if manifest.kind == "unpaired":
        fitting = [name for name, loss in UNPAIRED_LOSSES.items() if _fits(manifest, loss.needs)]
        choice = f"Give one that fits: --loss {', '.join(fitting)}"
        if not unpaired(names):
            raise InputError(
                f"{cache}: the cache is unpaired (prompt, completion, label); {said} need chosen "
                f"and rejected. {choice}; or precompute a paired data set."
            )
        if not set(names) <= set(fitting):
            raise InputError(
                f"{cache}: the cache was made with --no-kl-completions, which {said} need. "
                f"{choice}; or precompute it without that option."
            )
    elif unpaired(names):
        raise InputError(
            f"{cache}: the cache is of pairs; {said} need unpaired rows (prompt, completion, "
            f"label). Give one that fits: --loss {', '.join(LOSSES)}; or precompute an unpaired "
            "data set."
        )
    if manifest.row_weights is not None:
        _require_weighable(cache, names)


def _require_weighable(cache: Path, names: Iterable[str]) -> None:
    for name in names:
        if "batch" in EVERY_LOSS[name].needs:
            raise InputError(
                f"{cache}: the rows have weights, and the loss {name} sorts the batch, so pairs "
                "cannot have weights. Give another --loss, or filter without --weight-by."
            )


def _fits(manifest: Manifest, needs: Iterable[str]) -> bool:
    return "kl" not in needs or manifest.counts.kl_tokens > 0
