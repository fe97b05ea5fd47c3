"""Checks before the first step that the policy's scores agree with the cache.

At the start, the policy is the reference. If its scores of a sample differ from the cache, then the
checkpoint or the tokens are different, and log-ratios would not be rewards.
"""

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.verification import Verification
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.cached_rows import CachedRows, Row, longest
from reflogp.stages.train.losses.inputs import AnyLogps
from reflogp.stages.train.losses.objective import uses

_SAMPLE = 8  # pairs; they take an eighth of the time of a usual step
_STANDARD_DEVIATIONS = 5.0  # the effect of rounding is itself estimated from few rows
# In nats per token and per response: how far rounding may take a cache without a verification.
_ROUNDING = {"float32": 1e-4}
_ROUNDING_REDUCED = 0.05
_ROUNDING_OF_A_RESPONSE = 1e-2


def disagreement(
    score: Callable[[list[Row]], AnyLogps],
    pairs: CachedRows,
    manifest: Manifest,
    batch: int,
    *,
    mixture: bool = False,
) -> str | None:
    """How policy and cache disagree, in one sentence; None if they agree.

    Args:
        score: gives the policy's log-probs of rows, as training computes them.
        pairs: the rows of the cache; the sample includes the longest ones.
        manifest: of the cache; its verification says how far rounding changes a response.
        batch: how many rows to score at once.
        mixture: whether the policy is a mixture of experts. There, the other rows of a batch can
            change which experts run. The rows are therefore also scored one by one, and the cache,
            which was scored in other batches, may differ by as much.
    """
    # windows and position scaling only take effect beyond some length
    extremes = longest(pairs)
    others = min(_SAMPLE - len(extremes), len(pairs) - len(extremes))
    rows = random.Random(0).sample(range(len(pairs)), max(0, others))  # noqa: S311
    sample = extremes + [pairs[row] for row in rows]
    found = _logratios(score, sample, max(batch, 2) if mixture else batch)
    responses = len(found)
    distance = _rms(found)
    expected = _expected(manifest, sample)
    if mixture:
        expected = math.hypot(expected, _rms(found - _logratios(score, sample, 1)))
    if distance <= _STANDARD_DEVIATIONS * expected + _ROUNDING_OF_A_RESPONSE:
        return None
    return (
        f"policy and cache do not agree: {responses} sampled responses differ by {distance:.3g} "
        f"nats (root mean square), and rounding explains about {expected:.2g}"
    )


def _logratios(score: Callable[[list[Row]], AnyLogps], sample: list[Row], batch: int) -> Tensor:
    """log pi - log ref of each response, in nats, with `batch` rows scored at once."""
    shares = [sample[start : start + batch] for start in range(0, len(sample), batch)]
    # a batch of pairs has its chosen responses first, so the view has one row per side
    found = [
        score(share).logratios.detach().cpu().double().view(-1, len(share)) for share in shares
    ]
    return torch.cat(found, dim=1).flatten()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def first_margin_noise(config: TrainConfig, manifest: Manifest) -> float | None:
    """The standard deviation that rounding gives the first step's mean margin, which would be 0.

    A pair's margin is beta times the difference of two responses, each off by `_response_sd`. Half
    of unpaired rows are assumed to be good. Returns None without a verification, or if no loss
    uses the reference: the margin would then not start at 0.
    """
    if manifest.verification is None or not uses(config.losses, "reference"):
        return None
    rows = min(config.batch_size * config.accumulation, manifest.counts.rows)
    pairs = rows if manifest.kind == "paired" else rows / 2
    return config.beta * _response_sd(manifest.verification) * math.sqrt(2 / pairs)


def _expected(manifest: Manifest, sample: Sequence[Row]) -> float:
    """The standard deviation that rounding gives a response's log-prob, in nats."""
    if manifest.verification is not None:
        return _response_sd(manifest.verification)
    lengths = [
        len(ids) if mask is None else int(mask.sum())
        for row in sample
        for ids, mask in zip(row.responses, row.masks, strict=True)
    ]
    a_token = _ROUNDING.get(manifest.engine.dtype, _ROUNDING_REDUCED)
    # rounding errors of a response's tokens are independent
    return a_token * math.sqrt(sum(lengths) / len(lengths))


def _response_sd(verification: Verification) -> float:
    """The standard deviation, in nats, between training's log-prob of a response and the cache's.

    A cache made with the training forward agrees with it bit by bit for single responses. Several
    in one batch are rounded differently, by as much as training differs from float32.
    """
    usual = max(verification.training.response_sd, verification.training_noise.response_sd)
    return math.hypot(usual, verification.repeat.response_sd if verification.repeat else 0.0)
