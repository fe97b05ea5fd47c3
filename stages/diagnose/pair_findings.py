"""Facts -> findings that compare the two responses of pairs. One function per finding."""

import numpy as np

from reflogp.stages.correlation import pearson, spearman
from reflogp.stages.diagnose.diagnosis import Finding, Severity, grade, signed
from reflogp.stages.diagnose.groups import preferred
from reflogp.stages.diagnose.survey import Facts

NEAR = 0.9
"""A similarity from which two responses are near-identical."""
_SMALL_GAP = 1.0  # nats; at beta 0.1 a tenth in the logit


def length_bias(facts: Facts) -> Finding:
    """Does length alone predict which response is preferred?"""
    measures = facts.measures
    difference = measures.length_difference.astype(np.float64)
    unequal = difference[difference != 0]
    share = float((unequal > 0).mean()) if len(unequal) else 0.5
    score = np.isfinite(measures.confidence)
    by_score = spearman(measures.confidence[score], difference[score])
    severity = grade(abs(share - 0.5), 0.1, 0.2)
    if not _beyond_chance(share, len(unequal)):
        severity = "fine"
    if severity == "fine" and by_score is not None and abs(by_score) > 0.5 and score.sum() >= 30:
        severity = "warning"
    longer = share >= 0.5
    of_score = "" if by_score is None else f", of the score {by_score:+.2f}"
    of_gap = spearman(measures.gap, difference)
    return Finding(
        name="length bias",
        severity=severity,
        title=f"chosen is longer in {share:.1%} of the pairs that differ in length, by "
        f"{np.median(difference):+.0f} tokens (median)",
        figures={
            "share_chosen_longer": share,
            "pairs_of_unequal_length": len(unequal),
            "median_length_difference": float(np.median(difference)),
            "spearman_reference_margin": of_gap,
            "pearson_reference_margin": pearson(measures.gap, difference),
            "spearman_confidence": by_score,
            "pearson_confidence": pearson(measures.confidence[score], difference[score]),
        },
        advice=f"Rank correlation of the reference margin with the length difference: "
        f"{signed(of_gap)}{of_score}."
        + ("" if severity == "fine" else f" The policy can win by writing "
           f"{'more' if longer else 'less'}. Take length out of the reward, or the pairs out that "
           "differ most in it."),
        commands=[] if severity == "fine" else [
            f"reflogp train --cache {facts.cache} --output model/ --loss dpo_norm --beta 5",
            f"reflogp filter {facts.cache} --output filtered/ --max-length-ratio 2",
        ],
    )  # fmt: skip


def too_similar(facts: Facts) -> Finding:
    """Do the two responses differ enough to say what is preferred?"""
    alike = facts.compared
    share = float((alike >= NEAR).mean())
    small = float((np.abs(facts.measures.gap) < _SMALL_GAP).mean())
    severity = grade(share, 0.05, 0.2)
    sample = "" if len(alike) == facts.rows else f" (of {len(alike):,} compared)"
    return Finding(
        name="similarity",
        severity=severity,
        title=f"{share:.1%} of the pairs are near-identical{sample}; the median pair has "
        f"{np.median(alike):.0%} of its tokens in common",
        figures={
            "compared": len(alike),
            "share_near_identical": share,
            "median_similarity": float(np.median(alike)),
            "share_reference_gap_under_1_nat": small,
        },
        advice=f"The reference tells {small:.1%} of the pairs apart by less than {_SMALL_GAP:g} "
        "nat."
        + ("" if severity == "fine" else " Of such pairs the loss stays near log 2, and what is "
           "learned can push both responses down (likelihood displacement; Pal et al. 2024). Drop "
           "them, or anchor the chosen response with DPOP."),
        commands=[] if severity == "fine" else [
            f"reflogp filter {facts.cache} --output filtered/ --max-similarity {NEAR}",
            f"reflogp train --cache {facts.cache} --output model/ --loss dpop",
        ],
    )  # fmt: skip


def reference_order(facts: Facts) -> Finding:
    """How certain is the reference already of the order?"""
    measures = facts.measures
    right = float(preferred(measures.gap).mean())
    each = float(preferred(measures.chosen_per_token - measures.rejected_per_token).mean())
    count = len(measures.gap)
    severity: Severity = "fine"
    advice = "Sums prefer what is shorter, so the second figure says more of the content."
    if right > 0.9 and each > 0.9:
        severity = "warning"
        advice = "The reference knows the order of nearly all pairs: there is little to learn."
    elif max(right, each) < 0.25 and _beyond_chance(max(right, each), count):
        severity = "warning"
        advice = (
            "The reference prefers nearly every rejected response. Check that chosen and rejected "
            "are not swapped (`--columns chosen=...,rejected=...` of precompute)."
        )
    low, middle, high = np.quantile(measures.gap, [0.05, 0.5, 0.95])
    return Finding(
        name="reference",
        severity=severity,
        title=f"the reference prefers chosen in {right:.1%} of the pairs, by the mean log-prob of "
        f"a token in {each:.1%}",
        figures={
            "accuracy_sum": right,
            "accuracy_per_token": each,
            "reference_gap_q05": float(low),
            "reference_gap_median": float(middle),
            "reference_gap_q95": float(high),
        },
        advice=f"{advice} Its margin is {middle:+.1f} nats in the median, and from {low:+.0f} to "
        f"{high:+.0f} in 90% of the pairs.",
    )


def _beyond_chance(share: float, count: int) -> bool:
    """Whether a share of `count` draws is more than two standard errors from one half."""
    return bool(abs(share - 0.5) > 1 / np.sqrt(max(count, 1)))
