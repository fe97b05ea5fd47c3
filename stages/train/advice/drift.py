"""Where the policy goes: away from the reference, chosen responses too, or after length."""

import math

from reflogp.stages.train.advice.evidence import CLEAR, UNCLEAR, Advice, Evidence
from reflogp.stages.train.advice.history import mean_of
from reflogp.stages.train.losses.objective import unpaired

# Half a nat a token: the average token has 0.6 or 1.6 times the probability that the reference
# gives it. Tokens of short answers may move much more, and should, hence also 50 nats a response:
# at beta 0.1 a margin of 46 already makes a pair 99% sure.
DRIFT_NATS_PER_TOKEN = 0.5
DRIFT_NATS = 50.0

# Chosen responses often fall a little. It is displacement (Razin et al. 2024) where the fall is at
# least half the margin: then the rejected ones fall at most three times as much. Two nats make a
# response seven times less likely.
FALL_SHARE_OF_MARGIN = 0.5
FALL_NATS = 2.0
FALL_IS_MEANT = {"apo_down"}  # it lowers both, by its definition
HOLD_CHOSEN = {"sft", "rpo", "dpop"}

# One pair in ten is ordered right by the sum of its tokens and wrong by their mean. With a
# correlation of 0.2 and above, length explains it.
LENGTH_GAP = 0.1
LENGTH_CORRELATION = 0.2


def reference_drift(seen: Evidence) -> Advice | None:
    """The policy is so far from the reference that its text may have broken down."""
    if not seen.reference:
        return None
    for side in ("chosen", "rejected"):
        nats = seen.recent(f"rewards/{side}").over(seen.beta)
        per_token = nats.over(seen.recent(f"lengths/{side}").mean)
        far = nats.magnitude().above(DRIFT_NATS, CLEAR)
        if far and per_token.magnitude().above(DRIFT_NATS_PER_TOKEN, CLEAR):
            return Advice(
                "reference_drift",
                f"The policy has left the reference: {side} responses have a log-ratio of "
                f"{nats.mean:+.0f} nats, {per_token.mean:+.2f} a token.",
                "Lower --learning-rate, raise --beta, or train fewer --epochs.",
            )
    return None


def falling_chosen(seen: Evidence) -> Advice | None:
    """Likelihood displacement: the margin rises although chosen responses get less likely.

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
    """The margin comes from how long responses are, not from what their tokens say.

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
    # where no correlation was logged, the gap must do
    if not clear or tokens_rise or abs(correlation) < LENGTH_CORRELATION:
        return None
    winner = "shorter" if correlation < 0 else "longer"
    known = not math.isnan(correlation)
    why = f"; its correlation with their difference is {correlation:+.2f}: the {winner} one wins"
    return Advice(
        "length_exploitation",
        f"The margin comes from the lengths: {accuracy.mean:.0%} of the pairs are ordered right by "
        f"the sum over tokens, {per_token.mean:.0%} by their mean{why if known else ''}.",
        "Use a loss that looks past length: --loss dpo_norm, ld_dpo, rdpo or simpo.",
    )


def _hold_up(losses: frozenset[str]) -> str:
    if unpaired(losses):
        return "Raise the weight of good responses, or lower --learning-rate."
    if losses & HOLD_CHOSEN:
        return "Lower --learning-rate, or raise the weight of the term that holds them up."
    return (
        f"Add a term that holds them up (--loss {_with_sft(losses)}), take --loss dpop or "
        "rpo, or lower --learning-rate."
    )


def _with_sft(losses: frozenset[str]) -> str:
    return ",".join(f"{name}=1" for name in sorted(losses)) + ",sft=0.2"
