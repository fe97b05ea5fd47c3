"""Rescore a sample of a cache with transformers, and judge whether its log-probs are correct."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.cache_shard import RESPONSES
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.sealed_file import Shard
from reflogp.data_schemas.verification import Verification
from reflogp.stages.cache.columns import views
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.model.causal_lm import is_mixture
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import load_config, load_saved_tokenizer, vocabulary
from reflogp.stages.model.memory import lacks_room
from reflogp.stages.precompute.score.engines.protocol import Logps, Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.score.score_shard import requests_of
from reflogp.stages.precompute.seal.compare import agreement, reasons_to_fail
from reflogp.stages.progress import Console

_TEXT_LENGTH = 200
_AT_ONCE = 64
_BATCH_TOKENS = 4096


def verify(
    cache: Path,
    shards: Sequence[Shard],
    reference: Checkpoint,
    sample: int,
    console: Console,
    seed: int = 0,
) -> Verification:
    """Rescore random rows in float32 and with the training forward, and compare.

    Args:
        cache: folder of the cache.
        shards: its shards.
        reference: what the cache was scored with; its dtype is that of training.
        sample: number of rows; all of them if there are fewer.
        console: for progress.
        seed: seed of the sample.

    Raises:
        InputError: the cache is empty, or a shard cannot be read.
    """
    dtype, in_float32 = reference.dtype, replace(reference, dtype="float32")
    limits = Limits(vocabulary=vocabulary(reference.folder) or Limits.vocabulary)
    requests, cached, names = _sample(cache, shards, limits, reference, sample, seed)
    exact = _rescore(requests, in_float32, console, alone=True)
    mixture = is_mixture(load_config(reference.folder, trusted=reference.trusted))
    training = exact
    if dtype != "float32" or mixture:
        training = _rescore(requests, reference, console)
    float32 = agreement("float32 forward", cached, exact, names)
    against = agreement(f"training forward ({dtype})", cached, training, names)
    noise = agreement(f"training forward ({dtype}) against float32", training, exact, names)
    repeat = None
    if mixture:
        alone = exact
        if dtype != "float32":
            alone = _rescore(requests, reference, console, alone=True)
        repeat = agreement("the same forward, alone and in a batch", alone, training, names)
    reasons = reasons_to_fail(float32, against, noise, dtype, repeat)
    return Verification(
        sampled_rows=len({row for row, _, _ in names}),
        passed=not reasons,
        reasons=reasons,
        float32=float32,
        training=against,
        training_noise=noise,
        repeat=repeat,
    )


def too_large(checkpoint: Path) -> str | None:
    """Return why a float32 forward of `checkpoint` does not fit in memory, or None if it does.

    Raises:
        InputError: the weights cannot be read.
    """
    return lacks_room(checkpoint, "float32", "cuda" if torch.cuda.is_available() else "cpu")


def _sample(
    cache: Path,
    shards: Sequence[Shard],
    limits: Limits,
    reference: Checkpoint,
    sample: int,
    seed: int,
) -> tuple[list[Request], list[Logps], list[tuple[str, str, str]]]:
    """Draw random rows from all shards; return the requests, their cached values and names."""
    rows = sum(shard.rows for shard in shards)
    if not rows:
        raise InputError(f"{cache}: the cache holds no rows to verify.")
    picked = np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False))
    tokenizer: PreTrainedTokenizerBase = load_saved_tokenizer(
        reference.tokenizer, trusted=reference.trusted
    )
    requests: list[Request] = []
    cached: list[Logps] = []
    names: list[tuple[str, str, str]] = []
    first = 0
    for shard in shards:
        inside = picked[(picked >= first) & (picked < first + shard.rows)] - first
        first += shard.rows
        if not len(inside):
            continue
        table = sealed_shard(cache, shard, limits).take(inside)
        logps = {side: views(table.column(f"ref_{side}_logps")) for side in RESPONSES}
        for (row, side), request in zip(*requests_of(table), strict=True):
            values = logps[side][row]
            if values is None or not request.scored:
                continue
            requests.append(request)
            cached.append(values[request.wanted])
            text = str(tokenizer.decode(request.response_ids.tolist()))[:_TEXT_LENGTH]
            names.append((table.column("row_id")[row].as_py(), side, text))
    return requests, cached, names


def _rescore(
    requests: list[Request],
    reference: Checkpoint,
    console: Console,
    *,
    alone: bool = False,
) -> list[Logps]:
    """Return the log-probs of `requests`, in nats.

    With `alone`, each sequence is scored separately, without padding and without a fused attention
    kernel.
    """
    scorer = TransformersScorer(reference, eager=alone, batch_tokens=1 if alone else _BATCH_TOKENS)
    found: list[Logps] = []
    try:
        with console.track(
            f"verifying in {reference.dtype}", len(requests), "responses"
        ) as advance:
            for start in range(0, len(requests), _AT_ONCE):
                part = requests[start : start + _AT_ONCE]
                found += scorer.score(part)
                advance(len(part))
    finally:
        scorer.close()
    return found
