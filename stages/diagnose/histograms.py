"""Facts -> the histograms of a diagnosis."""

from collections.abc import Iterator

import numpy as np

from reflogp.stages.diagnose.diagnosis import Histogram
from reflogp.stages.diagnose.measures import Floats
from reflogp.stages.diagnose.survey import Facts

_BINS = 40


def histograms(facts: Facts) -> Iterator[Histogram]:
    """The histograms of a diagnosis, in the order of the page."""
    measures = facts.measures
    if facts.kind == "paired":
        difference = measures.length_difference.astype(float)
        yield _histogram(
            "length", "Length difference: chosen minus rejected", "tokens", "pairs",
            {"pairs": difference}, quantum=1,
        )  # fmt: skip
        yield _histogram(
            "gap", "Reference margin: log π_ref(chosen) - log π_ref(rejected)", "nats", "pairs",
            {"pairs": measures.gap},
        )  # fmt: skip
        borders = np.linspace(0, 1, _BINS + 1)
        yield Histogram(
            name="similarity",
            title="Similarity of both responses: tokens in common, in order",
            unit="share",
            of="pairs",
            edges=borders.tolist(),
            series={"pairs": counts(facts.compared, borders)},
        )
    yield _histogram(
        "logp", "Mean log-prob of a token under the reference", "nats", "responses",
        {
            "chosen": measures.chosen_per_token[measures.chosen_tokens > 0],
            "rejected": measures.rejected_per_token[measures.rejected_tokens > 0],
        },
    )  # fmt: skip


def _histogram(
    name: str, title: str, unit: str, of: str,
    series: dict[str, Floats], quantum: float = 0.0,
) -> Histogram:  # fmt: skip
    borders = edges(np.concatenate(list(series.values())), quantum)
    return Histogram(
        name=name,
        title=title,
        unit=unit,
        of=of,
        edges=borders.tolist(),
        series={key: counts(values, borders) for key, values in series.items()},
    )


def edges(values: Floats, quantum: float = 0.0) -> Floats:
    """Edges of the bins, float64 [bins + 1]. They cover all values but 0.5% at each end.

    Args:
        values: finite values.
        quantum: the smallest useful width of a bin, such as 1 for counts.
    """
    low, high = np.quantile(values, [0.005, 0.995])
    width = max((high - low) / _BINS, quantum) or 1.0
    bins = max(1, int(np.ceil((high - low) / width)))
    start = low - width / 2 if quantum else low
    return np.asarray(start + width * np.arange(bins + 2 if quantum else bins + 1))


def counts(values: Floats, borders: Floats) -> list[int]:
    """Count the values in each bin. The first and last bin also count all values beyond them."""
    inside = np.clip(values, borders[0], borders[-1])
    return [int(count) for count in np.histogram(inside, borders)[0]]
