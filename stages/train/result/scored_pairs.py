"""Scores a sample of pairs with the final policy, token by token, for `reflogp report`.

This takes forward passes only: 64 pairs take less time than the first 64 pairs of training.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from reflogp.data_schemas import scored_pairs
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import limits_of
from reflogp.stages.forward.response_logps import SUM_DTYPE
from reflogp.stages.model.decoder import Decoder
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.cached_rows import CachedRows
from reflogp.stages.train.job import TrainJob
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.objective import rewards, rewards_are_means, uses

_SIDES = ("chosen", "rejected")
_CACHED = [
    *("row_id", "source_row", "prompt_ids"),
    *(f"{side}_{what}" for side in _SIDES for what in ("ids", "mask")),
    *(f"ref_{side}_{what}" for side in _SIDES for what in ("logps", "logp_sum")),
]


def score_sample(
    trainer: PreferenceTrainer,
    job: TrainJob,
    folder: Path,
    trained: CachedRows,
    evaluated: CachedRows | None,
) -> None:
    """Write pairs.parquet into the folder of the result, which must have the tokenizer.

    Nothing is written for an unpaired cache, or if --report-pairs is 0.

    All processes must call this. Only the first one computes, unless each has a shard of the policy
    (FSDP).

    Args:
        trainer: holds the final policy.
        job: the run, which says how many pairs to sample.
        folder: of the result.
        trained: the pairs of training; sampled if no pairs were held out.
        evaluated: the pairs that were held out, if any.
    """
    config, manifest = job.config, job.manifest
    if manifest.kind != "paired" or not config.report_pairs:
        return
    if not (trainer.is_world_process_zero() or trainer.is_fsdp_enabled):
        return
    pairs = trained if evaluated is None else evaluated
    number = min(config.report_pairs, len(pairs))
    sample = sorted(random.Random(0).sample(range(len(pairs)), number))  # noqa: S311
    logps = _token_logps(trainer, pairs, sample, config.batch_size)
    if not trainer.is_world_process_zero():
        return
    source, cache = manifest, config.cache
    if job.eval_manifest is not None and config.eval_cache is not None:
        source, cache = job.eval_manifest, config.eval_cache
    positions = [pairs.indices[row] for row in sample] if isinstance(pairs, Subset) else sample
    rows = _cached_rows(cache, source, positions)
    decoder = Decoder(folder, trusted=job.policy.trusted)
    for row, scored in zip(rows, logps, strict=True):
        row["split"] = "train" if evaluated is None else "eval"
        for name in ("prompt", *_SIDES):
            row[f"{name}_pieces"] = decoder.token_texts(row[f"{name}_ids"])
        for side, found in zip(_SIDES, scored, strict=True):
            row[f"policy_{side}_logps"] = _of_every_token(found, row[f"{side}_mask"])
            row[f"policy_{side}_logp_sum"] = float(found.to(SUM_DTYPE).sum())
    _add_rewards(rows, config)
    scored_pairs.write(folder, rows)


def _token_logps(
    trainer: PreferenceTrainer, pairs: CachedRows, sample: list[int], batch: int
) -> list[tuple[Tensor, Tensor]]:
    """Log-probs of each sampled pair's scored tokens, float32: (chosen, rejected)."""
    every = [pair for row in sample if isinstance(pair := pairs[row], Pair)]
    by_length = sorted(range(len(every)), key=lambda i: every[i].distinct_tokens)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(every), batch):
        numbers = by_length[start : start + batch]
        logps = trainer.token_logps([every[i] for i in numbers])
        both = zip(logps[: len(numbers)], logps[len(numbers) :], strict=True)
        found |= dict(zip(numbers, both, strict=True))
    return [found[i] for i in range(len(every))]


def _of_every_token(logps: Tensor, mask: list[bool] | None) -> list[float]:
    """One log-prob per token of a response, 0 for those that the policy does not write."""
    scored = iter(logps.tolist())
    return [next(scored) if own else 0.0 for own in mask or [True] * len(logps)]


def _cached_rows(cache: Path, manifest: Manifest, positions: list[int]) -> list[dict[str, Any]]:
    """Rows of a cache at ascending positions, with the reference's log-probs per token."""
    rows: list[dict[str, Any]] = []
    first = 0
    for shard in manifest.shards:
        within = [p - first for p in positions if first <= p < first + shard.rows]
        if within:
            table = sealed_shard(cache, shard, limits_of(manifest), _CACHED)
            rows += table.take(within).to_pylist()
        first += shard.rows
    return rows


def _add_rewards(rows: list[dict[str, Any]], config: TrainConfig) -> None:
    """Add rewards and margins, defined as in the run's logs."""

    def both(form: str) -> Tensor:
        return torch.tensor([row[form.format(s)] for s in _SIDES for row in rows], dtype=SUM_DTYPE)

    tokens = torch.tensor([
        scored_pairs.scored_tokens(row, side) for side in _SIDES for row in rows
    ])  # fmt: skip
    pairs = PairLogps.stacked(both("policy_{}_logp_sum"), both("ref_{}_logp_sum"), tokens)
    if rewards_are_means(config.losses):
        pairs = pairs.per_token()
    chosen, rejected = rewards(pairs, config.beta, uses(config.losses, "reference"))
    for row, good, bad in zip(rows, chosen.tolist(), rejected.tolist(), strict=True):
        row |= {"chosen_reward": good, "rejected_reward": bad, "margin": good - bad}
