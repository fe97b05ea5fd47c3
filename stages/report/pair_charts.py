"""Charts of the scored pairs: how far they moved, length, calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reflogp.data_schemas.scored_pairs import scored_tokens
from reflogp.stages.correlation import pearson
from reflogp.stages.report.chart import Chart, Ink
from reflogp.stages.report.gather import FinishedRun, Floats
from reflogp.stages.report.histogram import draw_histogram

SIDES = ("chosen", "rejected")
_BIN = 10  # pairs per bin; a share of fewer is meaningless
_LEAST = 40  # pairs needed for a calibration
_MOST_BINS = 8
_SD95 = 1.96
_DOTS = 400  # per side, and rows of the table


def charts(run: FinishedRun) -> list[Chart]:
    """Return the charts of one run's scored pairs, or none if it has no pairs."""
    if not run.pairs:
        return []
    found = [_moved(run), _plane(run), _length(run)]
    return found + (
        [_policy_calibration(run), _cache_calibration(run)] if len(run.pairs) >= _LEAST else []
    )


def log_ratios(pairs: Sequence[Mapping[str, Any]], side: str) -> Floats:
    """Return log pi_theta(y|x) - log pi_ref(y|x) of one side of each pair, float64 [n], in nats."""
    return np.array(
        [pair[f"policy_{side}_logp_sum"] - pair[f"ref_{side}_logp_sum"] for pair in pairs], float
    )


def _moved(run: FinishedRun) -> Chart:
    values = {side: log_ratios(run.pairs, side) for side in SIDES}
    both = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(both, bins=min(24, max(8, len(run.pairs) // 3)))
    counts = {side: np.histogram(found, edges)[0].tolist() for side, found in values.items()}

    def draw(axes: Any, ink: Ink) -> None:
        draw_histogram(axes, ink, edges.tolist(), counts)
        axes.axvline(0, color=ink.text, linewidth=1.2, linestyle=":", label="before training")
        axes.set_xlabel("log-ratio to the reference, nats")
        axes.set_ylabel("pairs")
        axes.legend(loc="best")

    means = ", ".join(f"{side} {values[side].mean():+.2f}" for side in SIDES)
    return Chart(
        "log-ratios", "Log-ratios after training",
        f"Before training, all are 0, because the policy is the reference. Means: {means} nats.",
        draw, ("from", "to", *SIDES),
        [(float(a), float(b), c, r)
         for a, b, c, r in zip(edges, edges[1:], *counts.values(), strict=False)],
    )  # fmt: skip


def _plane(run: FinishedRun) -> Chart:
    chosen, rejected = (log_ratios(run.pairs, side) for side in SIDES)
    right = np.array([pair["margin"] for pair in run.pairs], float) > 0

    def draw(axes: Any, ink: Ink) -> None:
        for number, (where, label) in enumerate(((right, "right"), (~right, "wrong"))):
            axes.scatter(
                rejected[where][:_DOTS], chosen[where][:_DOTS], s=22, marker="oX"[number],
                color=ink.series[2 + number], label=label, linewidths=0, alpha=0.85,
            )  # fmt: skip
        axes.axhline(0, color=ink.line, linewidth=1, zorder=0)
        axes.axvline(0, color=ink.line, linewidth=1, zorder=0)
        axes.axline((0, 0), slope=1, color=ink.text, linestyle=":", linewidth=1.2)
        axes.set_xlabel("log-ratio of rejected, nats")
        axes.set_ylabel("log-ratio of chosen, nats")
        axes.legend(loc="best")

    return Chart(
        "chosen-rejected", "Chosen against rejected",
        f"One point per pair; {right.mean():.0%} are right. On the dotted line, the margin of the "
        "log-ratios is 0. Below 0, a response became less likely.",
        draw, ("row", *SIDES, "right"),
        [(str(pair["source_row"]), float(chosen[i]), float(rejected[i]), "yes" if wins else "no")
         for i, (pair, wins) in enumerate(zip(run.pairs[:_DOTS], right, strict=False))],
    )  # fmt: skip


def _length(run: FinishedRun) -> Chart:
    lengths = {
        side: np.array([scored_tokens(pair, side) for pair in run.pairs], float) for side in SIDES
    }
    rewards = {side: np.array([p[f"{side}_reward"] for p in run.pairs], float) for side in SIDES}
    margins = np.array([pair["margin"] for pair in run.pairs], float)
    correlation = pearson(margins, lengths["chosen"] - lengths["rejected"])

    def draw(axes: Any, ink: Ink) -> None:
        for number, side in enumerate(SIDES):
            axes.scatter(
                lengths[side][:_DOTS], rewards[side][:_DOTS], s=22, marker="o^"[number], label=side,
                facecolors="none" if number else ink.series[0], edgecolors=ink.series[number],
                linewidths=1.1, alpha=1 if number else 0.75,
            )  # fmt: skip
        axes.axhline(0, color=ink.line, linewidth=1, zorder=0)
        axes.set_xlabel("tokens of the response")
        axes.set_ylabel("reward")
        axes.legend(loc="best")

    said = "" if correlation is None else (
        f" The correlation of margins with differences in length is {correlation:+.2f}: near 0 is "
        "good, near 1 or -1 means that the policy learned length."
    )  # fmt: skip
    return Chart(
        "length-reward", "Length against reward", f"One point per response.{said}",
        draw, ("row", "tokens of chosen", "reward", "tokens of rejected", "reward"),
        [(str(pair["source_row"]), int(lengths["chosen"][i]), float(rewards["chosen"][i]),
          int(lengths["rejected"][i]), float(rewards["rejected"][i]))
         for i, pair in enumerate(run.pairs[:_DOTS])],
    )  # fmt: skip


class Bin(NamedTuple):
    """Pairs of similar confidence, and the share of them that is right.

    `low` and `high` are the bounds of the 95% interval of `share` (Wilson).
    """

    pairs: int
    confidence: float
    share: float
    low: float
    high: float


def calibration(margins: Floats) -> list[Bin]:
    """Group pairs into bins of equal size, by increasing confidence.

    Under the Bradley-Terry model, a policy that prefers one response by a margin m of rewards
    prefers it with probability sigmoid(|m|). It is right if that response is the chosen one.

    Args:
        margins: rewards of chosen minus those of rejected, float64 [n].
    """
    ordered = margins[np.argsort(np.abs(margins), kind="stable")]
    parts = np.array_split(ordered, max(1, min(_MOST_BINS, len(margins) // _BIN)))
    return [
        Bin(len(part), float((1 / (1 + np.exp(-np.abs(part)))).mean()), float((part > 0).mean()),
            *_wilson(int((part > 0).sum()), len(part)))
        for part in parts
    ]  # fmt: skip


def _policy_calibration(run: FinishedRun) -> Chart:
    return _calibration(
        "calibration", "Calibration of the policy",
        "How often the preferred response is the chosen one, against the confidence of the "
        "rewards. Below the dotted line, the policy is overconfident.",
        np.array([pair["margin"] for pair in run.pairs], float), "sigmoid of |margin|",
    )  # fmt: skip


def _cache_calibration(run: FinishedRun) -> Chart:
    """Return the calibration of the reference alone, with beta log pi_ref as the reward."""
    gaps = [pair["ref_chosen_logp_sum"] - pair["ref_rejected_logp_sum"] for pair in run.pairs]
    return _calibration(
        "calibration-cache", "Calibration of the cache",
        "The same for the reference alone: how often its likelier response is the chosen one, "
        "against beta times the distance of its two log-probs. At 0.5, it knows nothing about the "
        "preferences, however confident it is.",
        float(run.record.settings["beta"]) * np.array(gaps, float), "sigmoid of beta |distance|",
    )  # fmt: skip


def _calibration(name: str, title: str, note: str, margins: Floats, confidence: str) -> Chart:
    bins = calibration(margins)
    x, y = [b.confidence for b in bins], [b.share for b in bins]

    def draw(axes: Any, ink: Ink) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=ink.text, linestyle=":", label="calibrated")
        bars = [[b.share - b.low for b in bins], [b.high - b.share for b in bins]]
        axes.errorbar(
            x, y, yerr=bars, color=ink.series[2], marker="o", linewidth=1.2, capsize=3,
            label="share right, 95% interval",
        )  # fmt: skip
        axes.set_xlim(0.49, min(1.01, max(0.6, max(x)) + 0.03))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"confidence: {confidence}")
        axes.set_ylabel("share right")
        axes.legend(loc="lower right")

    header = ("pairs", "confidence", "share right", "from", "to")
    return Chart(name, title, note, draw, header, [tuple(b) for b in bins])


def _wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson 1927's interval of a share."""
    z2 = _SD95**2
    centre = (right + z2 / 2) / (n + z2)
    half = _SD95 / (n + z2) * math.sqrt(right * (n - right) / n + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
