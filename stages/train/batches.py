"""A sealed cache -> batches of token ids and reference log-probs.

The ids are those that were scored: nothing is tokenized here. The table is held in Arrow, at about
4 bytes a token; only what a batch needs becomes tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_schemas.cache_shard import read_shard
from data_schemas.errors import InputError
from data_schemas.manifest import Manifest, require_intact
from stages.response_logps import SUM_DTYPE

_COLUMNS = [
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "ref_chosen_logp_sum",
    "ref_rejected_logp_sum",
]


class Batch(TypedDict):
    """`b` pairs as 2b right-padded sequences: first all chosen ones, then all rejected ones.

    Attributes:
        input_ids: int64 [2b, length].
        attention_mask: int64 [2b, length], 1 on real tokens.
        response_mask: bool [2b, length], True on response tokens.
        ref_logps: SUM_DTYPE [2b], log pi_ref(y|x) in nats.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    ref_logps: Tensor


class CachedPairs(Dataset[dict[str, Any]]):
    """The pairs of a cache, by position."""

    def __init__(self, cache: Path, manifest: Manifest) -> None:
        """Open the shards of a sealed cache.

        Raises:
            InputError: the cache is unpaired, or a shard is missing or damaged.
        """
        if manifest.kind != "paired":
            raise InputError(
                f"{cache}: the cache is unpaired (prompt, completion, label); losses over pairs "
                "need chosen and rejected. Precompute a paired data set."
            )
        for shard in manifest.shards:
            require_intact(cache / shard.file, shard)
        tables = [read_shard(cache / shard.file, _COLUMNS) for shard in manifest.shards]
        self._table: pa.Table = pa.concat_tables(tables)
        if self._table.num_rows != manifest.counts.rows:
            raise InputError(
                f"{cache}: the shards hold {self._table.num_rows} rows, the manifest says "
                f"{manifest.counts.rows}. Run `reflogp precompute` again."
            )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self._table.slice(index, 1).to_pylist()
        return rows[0]


def collate(pairs: Sequence[dict[str, Any]], pad_id: int = 0) -> Batch:
    """Pad pairs into one batch. Padding is masked everywhere, so `pad_id` changes no number."""
    sequences = [
        (pair["prompt_ids"], pair[f"{side}_ids"], pair[f"ref_{side}_logp_sum"])
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    length = max(len(prompt) + len(response) for prompt, response, _ in sequences)
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, response, _) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor(prompt + response)
        attention_mask[row, :end] = 1
        response_mask[row, len(prompt) : end] = True
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        ref_logps=torch.tensor([logp for *_, logp in sequences], dtype=SUM_DTYPE),
    )
