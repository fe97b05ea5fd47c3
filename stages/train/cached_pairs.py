"""A sealed cache -> its pairs by position, in memory that does not grow with their number.

The columns that training reads are copied once into an Arrow file that is mapped into memory: any
pair is a few pages away, so the shuffle is over all of them, and what is resident is for the system
to decide.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_schemas.cache_shard import read_shard
from data_schemas.errors import InputError
from data_schemas.manifest import Manifest, require_intact

_SIDES = ("chosen", "rejected")
_COLUMNS = [
    "prompt_ids",
    *(f"{side}_ids" for side in _SIDES),
    *(f"ref_{side}_logp_sum" for side in _SIDES),
]
_TOKEN_COLUMNS = [f"ref_{side}_logps" for side in _SIDES]
_SHARED = "ref_shared_logps"


class Pair(NamedTuple):
    """One preference: int32 token ids, and log pi_ref(y|x) of both responses in nats.

    `ref_shared_logps` are the same over the first min(|y_w|, |y_l|) tokens of chosen and rejected.
    """

    prompt_ids: NDArray[np.int32]
    chosen_ids: NDArray[np.int32]
    rejected_ids: NDArray[np.int32]
    ref_chosen_logp: float
    ref_rejected_logp: float
    ref_shared_logps: tuple[float, float] | None = None

    @property
    def distinct_tokens(self) -> int:
        """Tokens of the prompt and of both responses."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


class Pairs(Protocol):
    """Pairs by position: those of a cache, or some of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


class CachedPairs(Dataset[Pair]):
    """The pairs of a cache, by position."""

    def __init__(self, cache: Path, manifest: Manifest, *, tokens: bool = False) -> None:
        """Check the shards of a sealed cache and map what training reads of them.

        Args:
            cache: folder of the cache.
            manifest: its manifest.
            tokens: read the log-probs of each token too, for `Pair.ref_shared_logps`.

        Raises:
            InputError: the cache is unpaired, or a shard is missing or damaged.
        """
        if manifest.kind != "paired":
            raise InputError(
                f"{cache}: the cache is unpaired (prompt, completion, label); losses over pairs "
                "need chosen and rejected. Precompute a paired data set."
            )
        self._folder = tempfile.TemporaryDirectory(prefix="reflogp-")
        file = Path(self._folder.name) / "pairs.arrow"
        schema, rows = None, 0
        with pa.OSFile(str(file), "wb") as sink:
            writer = None
            for shard in manifest.shards:
                require_intact(cache / shard.file, shard)
                columns = _COLUMNS + _TOKEN_COLUMNS * tokens
                table = read_shard(cache / shard.file, columns).combine_chunks()
                if tokens:
                    shared = pa.array(_shared_sums(table), pa.list_(pa.float64(), 2))
                    table = table.drop_columns(_TOKEN_COLUMNS).append_column(_SHARED, shared)
                schema = schema or table.schema
                writer = writer or pa.ipc.new_file(sink, schema)
                writer.write_table(table)
                rows += table.num_rows
            if writer is not None:
                writer.close()
        if rows != manifest.counts.rows:
            raise InputError(
                f"{cache}: the shards hold {rows} rows, the manifest says {manifest.counts.rows}. "
                "Run `reflogp precompute` again."
            )
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Pair:
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        prompt, chosen, rejected, ref_chosen, ref_rejected = (
            batch.column(name)[row] for name in _COLUMNS
        )
        return Pair(
            prompt_ids=prompt.values.to_numpy(),
            chosen_ids=chosen.values.to_numpy(),
            rejected_ids=rejected.values.to_numpy(),
            ref_chosen_logp=ref_chosen.as_py(),
            ref_rejected_logp=ref_rejected.as_py(),
            ref_shared_logps=(
                tuple(batch.column(_SHARED)[row].as_py()) if _SHARED in batch.schema.names else None
            ),
        )


def _shared_sums(table: pa.Table) -> list[list[float]]:
    """Of each row, the sums over the tokens that both responses have room for, in float64."""
    sides = zip(*(table[name] for name in _TOKEN_COLUMNS), strict=True)
    sums = []
    for both in sides:
        logps = [side.values.to_numpy() for side in both]
        least = min(map(len, logps))
        sums.append([float(side[:least].sum(dtype=np.float64)) for side in logps])
    return sums
