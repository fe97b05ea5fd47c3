"""Two sets of log-probs of the same responses -> their difference, and whether it is too large.

Noise is harmless, but bias is not: a difference that grows with a response's length favours the
shorter or the longer response in every pair. The verdict therefore compares means and slopes with
their standard errors. Responses are the units, because tokens of one response are not independent.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reflogp.data_schemas.verification import Agreement, WorstResponse
from reflogp.stages.precompute.score.engines.protocol import Logps

# A float32 cache must agree with a float32 forward to rounding.
_FLOAT32_MAX = 1e-3
# At beta 0.1 and a length difference of 100 tokens, 0.005 nats per token move the logit by 0.05.
_BIAS = 0.005
_STANDARD_ERRORS = 4.0
# A cache in reduced precision can be as noisy as the training forward, and a little more by chance.
_NOISE_RATIO = 2.0


def agreement(
    against: str,
    cached: Sequence[Logps],
    rescored: Sequence[Logps],
    names: Sequence[tuple[str, str, str]],
    worst: int = 3,
) -> Agreement:
    """Compare two sets of log-probs response by response.

    Args:
        against: name of the second set.
        cached: float32 [tokens of the response] each, in nats.
        rescored: log-probs of the same responses, scored in another way.
        names: row id, side and text of each response.
        worst: number of responses with the largest differences to keep.
    """
    differences = [a.astype(np.float64) - b for a, b in zip(cached, rescored, strict=True)]
    tokens = np.concatenate(differences)
    lengths = np.array([len(part) for part in differences], dtype=np.float64)
    sums = np.array([part.sum() for part in differences])
    slope, slope_error = _slope(lengths, sums)
    # standard error of the ratio (all nats) / (all tokens), with responses as independent samples
    residual = sums - tokens.mean() * lengths
    mean_error = np.sqrt((residual**2).sum() / max(len(sums) - 1, 1) * len(sums)) / lengths.sum()
    order = np.argsort(-np.abs(sums))[:worst]
    return Agreement(
        against=against,
        responses=len(sums),
        tokens=len(tokens),
        mean=float(tokens.mean()),
        mean_t=_ratio(float(tokens.mean()), float(mean_error)),
        rms=float(np.sqrt((tokens**2).mean())),
        max=float(np.abs(tokens).max()),
        slope=slope,
        slope_t=_ratio(slope, slope_error),
        response_sd=float(sums.std()),
        worst=[
            WorstResponse(
                row_id=names[i][0],
                side=names[i][1],
                tokens=int(lengths[i]),
                difference=float(sums[i]),
                text=names[i][2],
            )
            for i in order
        ],
    )


def reasons_to_fail(
    float32: Agreement,
    training: Agreement,
    noise: Agreement,
    dtype: str,
    repeat: Agreement | None = None,
) -> list[str]:
    """Return the reasons not to train against a cache; empty if it passes.

    Args:
        float32: the cache against a float32 forward.
        training: the cache against the training forward.
        noise: the training forward against float32.
        dtype: dtype of the cache.
        repeat: for a mixture of experts, two scorings of the same responses against each other.
            Their difference is not a fault of the cache.
    """
    again_rms, again_max = (repeat.rms, repeat.max) if repeat is not None else (0.0, 0.0)
    if not all(np.isfinite([found.mean, found.rms]).all() for found in (float32, training, noise)):
        return ["a rescored log-prob is not finite: the model returns NaN or infinity"]
    if dtype == "float32":
        allowed = _FLOAT32_MAX + _NOISE_RATIO * again_max
        return [] if float32.max <= allowed else [
            f"the float32 cache differs from a float32 forward by up to {float32.max:.2g} nats per "
            f"token; rounding explains at most {allowed:.2g}"
        ]  # fmt: skip
    found = []
    for name, value, t in (
        ("mean", float32.mean, float32.mean_t),
        ("slope against length", float32.slope, float32.slope_t),
        ("mean against the training forward", training.mean, training.mean_t),
    ):
        if abs(value) > _BIAS and abs(t) > errors_allowed(float32.responses):
            found.append(f"bias: {name} is {value:+.4f} nats per token ({t:+.1f} standard errors)")
    usual = float(np.hypot(noise.rms, again_rms))
    if float32.rms > _NOISE_RATIO * usual + 1e-3:
        found.append(
            f"more noise than in training: RMS {float32.rms:.3f} against {usual:.3f} nats per token"
        )
    return found


def errors_allowed(responses: int) -> float:
    """Return how many of its own standard errors a mean over `responses` can be from zero.

    The limit is as unlikely as four standard errors of a normal variable. It grows for small
    samples: 8 responses estimate their error so poorly that 4.5 can be chance. It is Student's
    quantile as a series in 1 / degrees of freedom (Abramowitz and Stegun 1964, 26.7.5), which is
    accurate to 3% at 7 degrees.
    """
    z, free = _STANDARD_ERRORS, max(responses - 1, 1)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(free) ** power for power, term in enumerate(terms, 1))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least-squares slope of y over x, and its standard error."""
    if len(x) < 3 or np.ptp(x) == 0:
        return 0.0, 0.0
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _ratio(value: float, error: float) -> float:
    return value / error if error > 0 else 0.0
