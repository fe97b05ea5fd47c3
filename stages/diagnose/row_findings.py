"""Facts -> findings that apply to pairs and unpaired rows. One function per finding."""

import numpy as np

from reflogp.stages.correlation import spearman
from reflogp.stages.diagnose.diagnosis import Finding, counted, grade, signed
from reflogp.stages.diagnose.groups import MOST
from reflogp.stages.diagnose.measures import FAR, Floats, centre_and_spread, is_far
from reflogp.stages.diagnose.survey import Facts

_FEW_ROWS = 1_000


def size(facts: Facts) -> Finding:
    """Are there enough rows to train on and to measure?"""
    few = facts.rows < _FEW_ROWS
    noun = "pairs" if facts.kind == "paired" else "rows"
    weights = ", with weights that no figure here counts in" if facts.weighted else ""
    return Finding(
        name="size",
        severity="warning" if few else "fine",
        title=f"{facts.rows:,} {noun}{weights}",
        figures={"rows": facts.rows},
        advice=f"5,000 to 100,000 are usual. A share of {facts.rows:,} is uncertain by "
        f"±{1 / np.sqrt(facts.rows):.0%}, and so few are learned by heart: one epoch, and hold "
        "some back." if few else "",
    )  # fmt: skip


def labels(facts: Facts) -> Finding:
    """Unpaired rows: how many are good, and does length alone predict the label?"""
    good = facts.measures.chosen_tokens > 0
    tokens = facts.measures.chosen_tokens + facts.measures.rejected_tokens
    share, by_length = float(good.mean()), spearman(good.astype(float), tokens.astype(float))
    advice = []
    if min(share, 1 - share) < 0.1:
        advice.append("Few of one kind teach little of it, unless they weigh more in the loss.")
    if by_length is not None and abs(by_length) > max(0.3, 3 / np.sqrt(len(good))):
        advice.append("Length alone tells much of the label: the policy can win by length.")
    return Finding(
        name="labels",
        severity="warning" if advice else "fine",
        title=f"{share:.1%} of the responses are good; rank correlation of label and length: "
        f"{signed(by_length)}",
        figures={"share_good": share, "spearman_label_length": by_length},
        advice=" ".join(advice),
    )


def duplicates(facts: Facts) -> Finding:
    """Do rows occur more than once?"""
    return _rows_to_drop(
        "duplicates", facts.duplicates, facts, (0.01, 0.1),
        f"{counted(facts.duplicates, 'row repeats', 'rows repeat')} another",
        "Repeated rows weigh more than others, and leak into what is held back.",
    )  # fmt: skip


def contradictions(facts: Facts) -> Finding:
    """Do pairs also occur with the opposite preference?"""
    found = counted(facts.contradictions, "row stands", "rows stand")
    return _rows_to_drop(
        "contradictions", facts.contradictions, facts, (0.005, 0.05),
        f"{found} against another with the opposite preference",
        "They teach nothing but noise, and tell how noisy the other labels are.",
    )  # fmt: skip


def truncated(facts: Facts) -> Finding:
    """Did responses lose their end?"""
    found, share = counted(facts.truncated, "row", "rows"), facts.truncated / facts.rows
    return _rows_to_drop(
        "truncated", facts.truncated, facts, (0.05, 0.2),
        f"{found} ({share:.1%}) with a response cut at max_length",
        "A response without its end teaches the policy not to stop. Score with a larger "
        "--max-length (rows that fit are not scored again), or drop them.",
    )  # fmt: skip


def outliers(facts: Facts) -> Finding:
    """Are there responses unlike all others, by length or by log-prob a token?"""
    far = is_far(facts.measures)
    share = float(far.mean())
    values = _per_token(facts)
    middle, spread = centre_and_spread(values)
    low = middle - FAR * spread
    return Finding(
        name="outliers",
        severity=grade(share, 0.01, 0.05),
        title=f"{counted(int(far.sum()), 'row', 'rows')} with a response more than {FAR:g} "
        "standard deviations off, by log-prob a token or length",
        figures={
            "outliers": int(far.sum()),
            "share": share,
            "logp_per_token_median": middle,
            "logp_per_token_limit": low,
        },
        advice=f"A token has {middle:.2f} nats in the median response; far below is what is under "
        f"{low:.2f}." + (" Look at them (--html): wrong languages, broken text, and copies of "
        "the prompt are of this kind." if far.any() else ""),
        commands=[
            f"reflogp filter {facts.cache} --output filtered/ --min-logp-per-token {low:.1f}"
        ] if (values < low).any() else [],
    )  # fmt: skip


def confidence(facts: Facts) -> Finding:
    """Were the annotators sure?"""
    values = facts.measures.confidence[np.isfinite(facts.measures.confidence)]
    if not len(values):
        return Finding(
            name="confidence",
            severity="note",
            title="the data has no confidence or scores",
            figures={"rows": 0},
        )
    against = float((values < 0).mean())
    ties = float((values == 0).mean())
    severity = grade(against + ties, 0.01, 0.1)
    return Finding(
        name="confidence",
        severity=severity,
        title=f"the score is against the preference in {against:.1%} of the rows, and even in "
        f"{ties:.1%}",
        figures={
            "rows": len(values),
            "share_against": against,
            "share_even": ties,
            "median": float(np.median(values)),
        },
        advice=f"Median {np.median(values):.3g}, lowest tenth up to {np.quantile(values, 0.1):.3g}."
        + ("" if severity == "fine" else " Pairs that were barely agreed on are mostly noise."),
        commands=[] if severity == "fine" else [
            f"reflogp filter {facts.cache} --output filtered/ --min-confidence "
            f"{_smallest_positive(values):.3g}"
        ],
    )  # fmt: skip


def other_columns(facts: Facts) -> Finding:
    """Which other columns does the cache keep, and how can it keep more?"""
    kept = [one.column for one in facts.grouped]
    if not kept:
        return Finding(
            name="columns",
            severity="note",
            title="nothing is known of languages and sources: the cache keeps no other columns",
            figures={},
            advice="Where the data has such columns, run `reflogp precompute` again with --keep "
            "source,language: nothing is scored again.",
        )
    many = ", ".join(one.column for one in facts.grouped if one.groups is None)
    return Finding(
        name="columns",
        severity="note",
        title=f"the cache keeps {', '.join(kept)}",
        figures={"columns": len(kept)},
        advice=f"More than {MOST} different values, so no table: {many}." if many else "",
    )


def _rows_to_drop(
    name: str, rows: int, facts: Facts, grades: tuple[float, float], title: str, advice: str
) -> Finding:
    """A finding on rows that `filter --drop-NAME` drops, with advice if there are any."""
    share = rows / facts.rows
    command = f"reflogp filter {facts.cache} --output filtered/ --drop-{name}"
    return Finding(
        name=name,
        severity=grade(share, *grades),
        title=title,
        figures={name: rows, "share": share},
        advice=advice if rows else "",
        commands=[command] if rows else [],
    )


def _per_token(facts: Facts) -> Floats:
    measures = facts.measures
    both = np.concatenate([measures.chosen_per_token, measures.rejected_per_token])
    return np.asarray(both[np.isfinite(both)])


def _smallest_positive(values: Floats) -> float:
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 0.0
