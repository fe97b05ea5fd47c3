"""A sealed cache of unpaired responses, good or bad -> a data set of rows."""

from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.train.data.cached_pairs import Mask
from reflogp.stages.train.data.mapped_cache import MappedCache

_COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask",
            "ref_chosen_logp_sum", "ref_rejected_logp_sum", "weight"]  # fmt: skip
_KL_COLUMNS = ["kl_ids", "kl_mask", "ref_kl_logp_sum"]


class Unpaired(NamedTuple):
    """One response: int32 token ids, whether it is good, and log pi_ref(y|x) in nats.

    Attributes:
        mismatched: the KL completion: another row's response after this row's prompt.
        weight: training multiplies the row's loss by it.
        mask: bool [tokens of the response], True where the policy writes the token; None if it
            writes all of them. The others count in no log-prob and no length. A KL completion that
            was cut can have no token that the policy writes.
    """

    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    desirable: bool
    ref_logp: float
    mismatched: Optional["Unpaired"] = None
    weight: float = 1.0
    mask: Mask | None = None

    @property
    def responses(self) -> list[NDArray[np.int32]]:
        """Token ids of the response, in a list like `Pair.responses`."""
        return [self.response_ids]

    @property
    def masks(self) -> list[Mask | None]:
        """Mask of the response, in a list like `Pair.masks`."""
        return [self.mask]

    @property
    def distinct_tokens(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


class CachedUnpaired(Dataset[Unpaired]):
    """The rows of an unpaired cache, by position."""

    def __init__(
        self, cache: Path, manifest: Manifest, *, kl: bool = False, limits: Limits | None = None
    ) -> None:
        """Check the shards of a sealed cache and map the columns that training reads.

        Args:
            cache: folder of the cache.
            manifest: its manifest; the cache is unpaired.
            kl: read the KL completions too, for `Unpaired.mismatched`. The cache must have them.
            limits: that the rows must satisfy; default: those in the manifest.

        Raises:
            InputError: a shard is missing or damaged, or a row is invalid.
        """
        self._kl = kl
        self._rows = MappedCache(cache, manifest, _COLUMNS + _KL_COLUMNS * kl, limits=limits)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Unpaired:
        row = self._rows.row(index)
        prompt = row["prompt_ids"]
        desirable = row["chosen_ids"] is not None
        side = "chosen" if desirable else "rejected"
        own = Unpaired(
            prompt_ids=prompt,
            response_ids=row[f"{side}_ids"],
            desirable=desirable,
            ref_logp=float(row[f"ref_{side}_logp_sum"]),
            weight=1.0 if row["weight"] is None else float(row["weight"]),
            mask=row[f"{side}_mask"],
        )
        if not self._kl:
            return own
        sum_, mask = float(row["ref_kl_logp_sum"]), row["kl_mask"]
        other = Unpaired(prompt, row["kl_ids"], desirable, sum_, mask=mask)
        return own._replace(mismatched=other)

    def longest(self) -> list[int]:
        """Position of the row with the longest sequence."""
        return [self._rows.longest("prompt_ids", "chosen_ids", "rejected_ids")]
