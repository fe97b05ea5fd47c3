"""A sealed cache of pairs -> a data set of pairs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.columns import scored_views
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.train.data.mapped_cache import MappedCache

_SIDES = ("chosen", "rejected")
_COLUMNS = [
    "prompt_ids",
    *(f"{side}_{what}" for side in _SIDES for what in ("ids", "mask")),
    *(f"ref_{side}_logp_sum" for side in _SIDES),
    "weight",
]
_TOKEN_COLUMNS = [f"ref_{side}_logps" for side in _SIDES]
_SHARED = "ref_shared_logps"

Mask = NDArray[np.bool_]


class Pair(NamedTuple):
    """One preference: int32 token ids, and log pi_ref(y|x) of both responses in nats.

    Attributes:
        ref_shared_logps: log pi_ref of the first min(|y_w|, |y_l|) tokens of chosen and rejected.
        weight: training multiplies the pair's loss by it.
        chosen_mask: bool [tokens of chosen], True where the policy writes the token. The others
            are context: the model reads them, and they count in no log-prob and no length. None
            if the policy writes all of them.
        rejected_mask: the same for the rejected response.
    """

    prompt_ids: NDArray[np.int32]
    chosen_ids: NDArray[np.int32]
    rejected_ids: NDArray[np.int32]
    ref_chosen_logp: float
    ref_rejected_logp: float
    ref_shared_logps: tuple[float, float] | None = None
    weight: float = 1.0
    chosen_mask: Mask | None = None
    rejected_mask: Mask | None = None

    @property
    def responses(self) -> list[NDArray[np.int32]]:
        """Token ids of both responses."""
        return [self.chosen_ids, self.rejected_ids]

    @property
    def masks(self) -> list[Mask | None]:
        """Masks of both responses."""
        return [self.chosen_mask, self.rejected_mask]

    @property
    def distinct_tokens(self) -> int:
        """Tokens of the prompt and of both responses."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


class CachedPairs(Dataset[Pair]):
    """The pairs of a cache, by position."""

    def __init__(
        self, cache: Path, manifest: Manifest, *, tokens: bool = False, limits: Limits | None = None
    ) -> None:
        """Check the shards of a sealed cache and map the columns that training reads.

        Args:
            cache: folder of the cache.
            manifest: its manifest; the cache is paired.
            tokens: read the log-probs of each token too, for `Pair.ref_shared_logps`.
            limits: that the rows must satisfy; default: those in the manifest.

        Raises:
            InputError: a shard is missing or damaged, or a row is invalid.
        """
        if tokens:
            columns = _COLUMNS + _TOKEN_COLUMNS
            self._rows = MappedCache(cache, manifest, columns, _with_shared_sums, limits)
        else:
            self._rows = MappedCache(cache, manifest, _COLUMNS, limits=limits)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        row = self._rows.row(index)
        return Pair(
            prompt_ids=row["prompt_ids"],
            chosen_ids=row["chosen_ids"],
            rejected_ids=row["rejected_ids"],
            ref_chosen_logp=float(row["ref_chosen_logp_sum"]),
            ref_rejected_logp=float(row["ref_rejected_logp_sum"]),
            ref_shared_logps=tuple(row[_SHARED].tolist()) if _SHARED in row else None,
            weight=1.0 if row["weight"] is None else float(row["weight"]),
            chosen_mask=row["chosen_mask"],
            rejected_mask=row["rejected_mask"],
        )

    def longest(self) -> list[int]:
        """Positions of the pairs with the longest sequences, of one response and of both."""
        sides = [("chosen_ids",), ("rejected_ids",), ("chosen_ids", "rejected_ids")]
        return sorted({self._rows.longest("prompt_ids", *names) for names in sides})


def _with_shared_sums(table: pa.Table) -> pa.Table:
    """Replace the log-probs per token by sums over the length that both responses have."""
    shared = pa.FixedSizeListArray.from_arrays(shared_sums(table).ravel(), 2)
    return table.drop_columns(_TOKEN_COLUMNS).append_column(_SHARED, shared)


def shared_sums(table: pa.Table) -> NDArray[np.float64]:
    """Sums of chosen and rejected over as many tokens as the shorter has, float64 [rows, 2].

    Args:
        table: with the log-probs of each token, and the masks.
    """
    sums = []
    sides = (
        scored_views(table.column(f"ref_{side}_logps"), table.column(f"{side}_mask"))
        for side in _SIDES
    )
    for both in zip(*sides, strict=True):
        least = min(map(len, both))
        sums.append([side[:least].sum(dtype=np.float64) for side in both])
    return np.array(sums, np.float64).reshape(-1, 2)
