"""Rules about drift: from the reference, of chosen responses, and towards length."""

import math

from reflogp.stages.train.advice.evidence import CLEAR, UNCLEAR, Advice, Evidence
from reflogp.stages.train.advice.history import mean_of
from reflogp.stages.train.losses.objective import unpaired

# At half a nat per token, the average token has 0.6 or 1.6 times its probability under the
# reference. Tokens of short answers should move further, so the limit is also 50 nats per response:
# at beta 0.1, a margin of 46 nats already makes a pair 99% certain.
DRIFT_NATS_PER_TOKEN = 0.5
DRIFT_NATS = 50.0

# Chosen responses often get a little less likely. It is displacement (Razin et al. 2024) if the
# fall is at least half the margin: rejected responses then fall at most three times as much. Two
# nats make a response seven times less likely.
FALL_SHARE_OF_MARGIN = 0.5
FALL_NATS = 2.0
FALL_IS_MEANT = {"apo_down"}  # lowers both responses by definition
HOLD_CHOSEN = {"sft", "rpo", "dpop"}

# The gap is the share of pairs that the sum over tokens orders correctly and the mean does not. At
# a correlation of 0.2 or more, length explains it.
LENGTH_GAP = 0.1
LENGTH_CORRELATION = 0.2


def reference_drift(seen: Evidence) -> Advice | None:
    """The policy is so far from the reference that its text may have degenerated."""
    if not seen.reference:
        return None
    for side in ("chosen", "rejected"):
        nats = seen.recent(f"rewards/{side}").over(seen.beta)
        per_token = nats.over(seen.recent(f"lengths/{side}").mean)
        far = nats.magnitude().above(DRIFT_NATS, CLEAR)
        if far and per_token.magnitude().above(DRIFT_NATS_PER_TOKEN, CLEAR):
            return Advice(
                "reference_drift",
                f"The policy is far from the reference: {side} responses have a log-ratio of "
                f"{nats.mean:+.0f} nats, {per_token.mean:+.2f} per token.",
                "Lower --learning-rate, raise --beta, or train fewer --epochs.",
            )
    return None


def falling_chosen(seen: Evidence) -> Advice | None:
    """Likelihood displacement: the margin rises while chosen responses get less likely.

    Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in Direct Preference
    Optimization"; Pal et al. 2024, "Smaug".
    """
    if not seen.reference or seen.losses & FALL_IS_MEANT:
        return None
    margin = seen.recent("rewards/margins").over(seen.beta)
    fall = seen.recent("rewards/chosen").over(-seen.beta)
    level = max(FALL_NATS, FALL_SHARE_OF_MARGIN * margin.mean)
    if not (margin.above(0, CLEAR) and fall.above(0, CLEAR) and fall.mean > level):
        return None
    return Advice(
        "falling_chosen",
        f"Chosen responses get less likely: their log-ratio is {-fall.mean:+.1f} nats, while the "
        f"margin has risen to {margin.mean:+.1f} nats (likelihood displacement).",
        _hold_up(seen.losses),
    )


def length_exploitation(seen: Evidence) -> Advice | None:
    """The margin comes from the length of responses, not from their tokens.

    Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization".
    """
    accuracy, per_token = seen.late("rewards/accuracies"), seen.late("rewards/accuracies_per_token")
    gap = mean_of(
        seen.late_steps("rewards/accuracies") - seen.late_steps("rewards/accuracies_per_token")
    )
    correlation = seen.late("rewards/length_correlation").mean
    sums_rise = seen.late("rewards/margins").above(0, CLEAR)
    tokens_rise = seen.late("rewards/margins_per_token").above(0, UNCLEAR)
    tokens_rise = tokens_rise and per_token.above(0.5, UNCLEAR)
    clear = sums_rise and gap.above(0, CLEAR) and gap.mean > LENGTH_GAP
    # without a logged correlation, the gap alone decides
    if not clear or tokens_rise or abs(correlation) < LENGTH_CORRELATION:
        return None
    winner = "shorter" if correlation < 0 else "longer"
    known = not math.isnan(correlation)
    why = f"; its correlation with length is {correlation:+.2f}: the {winner} response wins"
    return Advice(
        "length_exploitation",
        f"The margin comes from length: the sum over tokens orders {accuracy.mean:.0%} of the "
        f"pairs correctly, their mean {per_token.mean:.0%}{why if known else ''}.",
        "Use a loss that controls for length: --loss dpo_norm, ld_dpo, rdpo or simpo.",
    )


def _hold_up(losses: frozenset[str]) -> str:
    if unpaired(losses):
        return "Raise the weight of good responses, or lower --learning-rate."
    if losses & HOLD_CHOSEN:
        return "Lower --learning-rate, or raise the weight of the term that keeps them likely."
    return (
        f"Add a term that keeps them likely (--loss {_with_sft(losses)}), use --loss dpop or "
        "rpo, or lower --learning-rate."
    )


def _with_sft(losses: frozenset[str]) -> str:
    return ",".join(f"{name}=1" for name in sorted(losses)) + ",sft=0.2"
