"""Rules about learning: nothing is learned, only the training pairs are, or clipping limits it."""

import math

import numpy as np

from reflogp.stages.train.advice.evidence import (
    CLEAR,
    MIN_STEPS,
    MIN_WINDOW,
    RECENT,
    UNCLEAR,
    Advice,
    Evidence,
)
from reflogp.stages.train.advice.history import Mean, last, mean_of
from reflogp.stages.train.losses.objective import unpaired

# A third of the run is longer than its warm-up. A mean margin below 0.1 nats orders no pair, and
# bfloat16 rounding alone can cause it if one side is longer.
FLAT_AFTER = 1 / 3
FLAT_MIN_STEPS = 20
FLAT_NATS = 0.1
MOVED_NATS = 0.5  # a policy that moved this far without a margin did not follow the labels

# Two evaluations in a row that lose a tenth of the improvement and a hundredth of the loss. Every
# evaluation uses the same pairs, so noise is smaller than that.
OVERFIT_GIVEN_BACK = 0.1
OVERFIT_RELATIVE = 0.01
STALL_GAIN = 0.1  # the evaluation's margin rises by less than a tenth of training's rise

# At a twentieth of its first value, a logistic loss has a fifteenth of its first gradient.
MEMORISED_LOSS = 0.05

# Norms of one to two at a limit of 1 are common and hardly affect AdamW. At three times the limit
# in nine of ten steps, clipping sets the step size.
CLIPPED_TIMES = 3.0
CLIPPED_SHARE = 0.9

# float32 has seven digits: a loss that changes by less than this has not changed.
CONSTANT = 1e-6


def nothing_trained(seen: Evidence) -> Advice | None:
    """Not a single step changed anything."""
    loss, norms = seen.train["loss"], seen.train["grad_norm"]
    still = bool((norms == 0).all())
    if not still and np.ptp(loss) > CONSTANT * abs(loss.mean()):
        return None
    why = "every gradient is 0" if still else f"the loss is {loss[-1]:.6f} in every step"
    return Advice(
        "nothing_trained",
        f"Nothing is trained: {why} ({len(loss)} steps).",
        "Check --learning-rate, and that --lora-targets names modules that the model uses.",
    )


def flat_margins(seen: Evidence) -> Advice | None:
    """After a third of the run, the margin is still within its noise."""
    if seen.share < FLAT_AFTER or len(seen.train) < FLAT_MIN_STEPS:
        return None
    margin = seen.late("rewards/margins")
    if not seen.reference:  # the margin then does not start at 0
        margin = margin.minus(mean_of(seen.train["rewards/margins"][:MIN_STEPS]))
    rises = margin.above(0, UNCLEAR) and margin.mean > FLAT_NATS * seen.beta
    if rises or math.isnan(margin.mean):
        return None
    moved = [
        side
        for side in ("chosen", "rejected")
        if seen.reference
        and (nats := seen.late(f"rewards/{side}").over(seen.beta).magnitude()).above(0, CLEAR)
        and nats.mean > MOVED_NATS
    ]
    figures = f"{margin.mean:+.2g} +- {margin.error:.1g} over the second half of the steps so far"
    if moved:
        return Advice(
            "flat_margins",
            f"The margin is still within its noise ({figures}), although the policy moves: it does "
            "not follow the labels.",
            "Check that good and bad responses are not mixed up."
            if unpaired(seen.losses)
            else "Check that chosen and rejected are not mixed up or nearly equal; for noisy "
            "labels use --loss robust or cdpo.",
        )
    rate = np.nanmax(seen.train["learning_rate"])
    return Advice(
        "flat_margins",
        f"The margin is still within its noise ({figures}): the policy hardly moves.",
        f"Raise --learning-rate (its peak so far is {rate:g}) or --lora-r, or train longer.",
    )


def overfit(seen: Evidence) -> Advice | None:
    """The policy improves on training pairs, but not on held-out pairs."""
    losses, steps = seen.evals["loss"], seen.evals.steps
    if len(losses) < 3:
        return None
    best = int(losses.argmin())
    rise = OVERFIT_RELATIVE * abs(losses[best])
    rise += OVERFIT_GIVEN_BACK * max(0.0, losses[0] - losses[best])
    remedy = (
        f"Train fewer --epochs (step {steps[best]:.0f} has the best evaluation), set "
        "--early-stopping, lower --learning-rate, or raise --beta."
    )
    fallen = _gain(seen, "loss", steps[best]).over(-1)
    if min(losses[-2:]) > losses[best] + rise and fallen.above(0, UNCLEAR):
        return Advice(
            "overfit",
            f"The evaluation's loss rises, from {losses[best]:.4f} at step {steps[best]:.0f} to "
            f"{losses[-1]:.4f}, while the training loss falls.",
            remedy,
        )
    margins, middle = seen.evals["rewards/margins"], len(losses) // 2
    gain = _gain(seen, "rewards/margins", steps[middle])
    stalls = margins[-1] - margins[middle] < STALL_GAIN * gain.mean
    ahead = seen.recent("rewards/margins").mean > 2 * margins[-1]
    if len(losses) > 3 and gain.above(0, CLEAR) and stalls and ahead:
        return Advice(
            "overfit",
            f"The evaluation's margin stalls, {margins[middle]:+.3f} at step {steps[middle]:.0f} "
            f"and {margins[-1]:+.3f} now, while the training margin rises by {gain.mean:.3f}.",
            remedy,
        )
    return None


def memorised(seen: Evidence) -> Advice | None:
    """There is nothing left to learn from these pairs."""
    accuracies = last(seen.train["rewards/accuracies"], RECENT, MIN_WINDOW)
    start, loss = seen.train["loss"][:MIN_WINDOW].mean(), seen.recent("loss").mean
    if not (accuracies == 1).all() or not 0 <= loss < MEMORISED_LOSS * start:
        return None
    return Advice(
        "memorised",
        f"Every pair of the last {len(accuracies)} steps is ordered correctly, at a loss of "
        f"{loss:.4f}: the pairs are memorised, or too easy.",
        "Train fewer --epochs, lower --learning-rate, or raise --beta; judge by held-out pairs.",
    )


def always_clipped(seen: Evidence) -> Advice | None:
    """Gradient clipping, not the learning rate, sets the step size."""
    norms = seen.late_steps("grad_norm")
    if not seen.max_grad_norm or not np.isfinite(norms).any():
        return None
    share = float((norms > CLIPPED_TIMES * seen.max_grad_norm).mean())
    if share < CLIPPED_SHARE:
        return None
    return Advice(
        "always_clipped",
        f"The gradient is clipped nearly always: in {share:.0%} of the steps its norm is over "
        f"{CLIPPED_TIMES:g} times the limit of {seen.max_grad_norm:g}; the median is "
        f"{np.median(norms):.1f}.",
        f"Raise --max-grad-norm (towards {np.median(norms):.2g}) or --accumulation; if the loss "
        "jumps, lower --learning-rate.",
    )


def _gain(seen: Evidence, name: str, step: float) -> Mean:
    """The recent mean of a training metric minus its mean before `step`."""
    before = seen.train[name][seen.train.steps <= step]
    return seen.recent(name).minus(mean_of(last(before, RECENT, MIN_WINDOW)))
