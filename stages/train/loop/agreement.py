"""Before the first step: does the policy, as training computes it, score what the cache says?

At its start the policy is the reference. If it scores a sample otherwise than the cache does, then
it is another checkpoint, or the tokens are others, and the log-ratios would be no rewards.
"""

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.verification import Verification
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.cached_rows import Row, Rows, longest
from reflogp.stages.train.losses.inputs import Logps
from reflogp.stages.train.losses.objective import uses

_SAMPLE = 8  # pairs, of which an eighth of a usual step's time is made
_STANDARD_DEVIATIONS = 5.0  # what rounding gives is itself estimated from few rows
# Nats a token, and of a whole response: what a cache without a verification may be off by.
_ROUNDING = {"float32": 1e-4}
_ROUNDING_REDUCED = 0.05
_ROUNDING_OF_A_RESPONSE = 1e-2


def disagreement(
    score: Callable[[list[Row]], Logps],
    pairs: Rows,
    manifest: Manifest,
    batch: int,
    *,
    mixture: bool = False,
) -> str | None:
    """What is wrong between policy and cache, in one sentence; None if they agree.

    Args:
        score: log-probs of rows under the policy, as training computes them.
        pairs: of the cache, or its unpaired rows; the longest of them are in the sample.
        manifest: of the cache; its verification says how far rounding takes a response.
        batch: how many rows to score at a time.
        mixture: whether the policy is a mixture of experts. Other neighbours in a batch may change
            which experts are chosen, so the rows are scored each alone, too, and what that differs
            by is expected of a cache that was scored in other batches.
    """
    # the longest ones too: windows and position scaling begin at some length only
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
        f"policy and cache do not agree: {responses} sampled responses are {distance:.3g} nats "
        f"apart (root mean square), and rounding explains about {expected:.2g}"
    )


def _logratios(score: Callable[[list[Row]], Logps], sample: list[Row], batch: int) -> Tensor:
    """Of each response, log pi - log ref in nats, with `batch` rows scored at a time."""
    shares = [sample[start : start + batch] for start in range(0, len(sample), batch)]
    # of pairs, the chosen responses of a batch come first: a row of the view for each side
    found = [
        score(share).logratios.detach().cpu().double().view(-1, len(share)) for share in shares
    ]
    return torch.cat(found, dim=1).flatten()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def first_margin_noise(config: TrainConfig, manifest: Manifest) -> float | None:
    """Standard deviation that rounding gives the first step's mean margin, which is 0 but for it.

    A pair's margin is beta times the difference of two responses, each off by `_response_sd`; of
    unpaired rows half are taken to be good, and half bad. None without a verification, and for a
    loss without a reference, whose margin is not 0.
    """
    if manifest.verification is None or not uses(config.losses, "reference"):
        return None
    rows = min(config.batch_size * config.accumulation, manifest.counts.rows)
    pairs = rows if manifest.kind == "paired" else rows / 2
    return config.beta * _response_sd(manifest.verification) * math.sqrt(2 / pairs)


def _expected(manifest: Manifest, sample: Sequence[Row]) -> float:
    """Standard deviation that rounding gives a response's log-prob, in nats."""
    if manifest.verification is not None:
        return _response_sd(manifest.verification)
    lengths = [len(ids) for row in sample for ids in row.responses]
    a_token = _ROUNDING.get(manifest.engine.dtype, _ROUNDING_REDUCED)
    # roundings of a response's tokens are independent of each other
    return a_token * math.sqrt(sum(lengths) / len(lengths))


def _response_sd(verification: Verification) -> float:
    """Standard deviation, in nats, of a response's log-prob from what the cache has for it.

    A cache that the training forward itself made agrees with it to the bit, response by response;
    several in one batch are rounded otherwise, as far as training is from float32.
    """
    usual = max(verification.training.response_sd, verification.training_noise.response_sd)
    return math.hypot(usual, verification.repeat.response_sd if verification.repeat else 0.0)
