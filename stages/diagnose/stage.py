"""Diagnose, joined: cache -> facts -> findings, suggestion, histograms, rows to look at."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import sealed_shard
from reflogp.stages.cache.shard_content import limits_of
from reflogp.stages.diagnose import statistics
from reflogp.stages.diagnose.diagnosis import Diagnosis, Example, Finding, Histogram, Severity
from reflogp.stages.diagnose.pair_findings import NEAR, length_bias, reference_order, too_similar
from reflogp.stages.diagnose.row_findings import (
    confidence,
    contradictions,
    duplicates,
    labels,
    other_columns,
    outliers,
    size,
    truncated,
)  # fmt: skip
from reflogp.stages.diagnose.statistics import FAR, distance
from reflogp.stages.diagnose.suggest import suggest, verdict
from reflogp.stages.diagnose.survey import Facts, survey
from reflogp.stages.diagnose.texts import Decoder
from reflogp.stages.progress import Console

_EXAMPLES = 5  # of each kind


def diagnose(
    cache: Path, manifest: Manifest, console: Console, decoder: Decoder | None = None
) -> Diagnosis:
    """What can be learned from a sealed cache.

    Args:
        cache: its folder.
        manifest: its manifest.
        console: for progress.
        decoder: where the texts of the examples are wanted.

    Raises:
        InputError: the cache is empty, or a shard is missing or damaged.
    """
    with console.track("reading", len(manifest.shards), "shards") as advance:
        facts = survey(cache, manifest, advance)
    found = findings(facts)
    examples = list(_examples(facts))
    texts = [example for _, example in examples]
    if decoder is not None:
        texts = [_with_text(cache, manifest, decoder, *one) for one in examples]
    return Diagnosis(
        cache=str(cache),
        kind=facts.kind,
        rows=facts.rows,
        measured=len(facts.positions),
        compared=len(facts.compared),
        verdict=verdict(found),
        findings=found,
        grouped=facts.grouped,
        suggestion=suggest(facts, found),
        histograms=list(_histograms(facts)),
        examples=texts,
    )


def _histograms(facts: Facts) -> Iterator[Histogram]:
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
        borders = np.linspace(0, 1, 41)
        yield Histogram(
            name="similarity",
            title="Similarity of both responses: tokens in common, in order",
            unit="share",
            of="pairs",
            edges=borders.tolist(),
            series={"pairs": statistics.histogram(facts.compared, borders)},
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
    series: dict[str, NDArray[np.float64]], quantum: float = 0.0,
) -> Histogram:  # fmt: skip
    borders = statistics.edges(np.concatenate(list(series.values())), quantum)
    return Histogram(
        name=name,
        title=title,
        unit=unit,
        of=of,
        edges=borders.tolist(),
        series={key: statistics.histogram(values, borders) for key, values in series.items()},
    )


def _examples(facts: Facts) -> Iterator[tuple[int, Example]]:
    """Rows to look at, with their positions in the cache; the most striking first."""
    far = distance(facts.measures)
    alike = np.nan_to_num(facts.similarity)
    for values, least, why in (
        (far, FAR, "an outlier, {:.1f} standard deviations off"),
        (alike, NEAR, "near-identical: similarity {:.3f}"),
    ):
        for row in np.argsort(-values, kind="stable")[:_EXAMPLES]:
            if values[row] >= least:
                source_row = int(facts.measures.source_row[row])
                yield (
                    int(facts.positions[row]),
                    Example(source_row=source_row, why=why.format(values[row])),
                )


def _with_text(
    cache: Path, manifest: Manifest, decoder: Decoder, position: int, example: Example
) -> Example:
    for shard in manifest.shards:
        if position < shard.rows:
            names = ["prompt_ids", "chosen_ids", "rejected_ids"]
            table = sealed_shard(cache, shard, limits_of(manifest), names)
            row = table.slice(position, 1).to_pylist()[0]
            prompt, chosen, rejected = (decoder(row[name] or []) for name in names)
            return example.model_copy(
                update={"prompt": prompt, "chosen": chosen, "rejected": rejected}
            )
        position -= shard.rows
    return example


Look = Callable[[Facts], Finding]

_SHARED: list[Look] = [
    contradictions, duplicates, confidence, truncated, outliers, other_columns,
]  # fmt: skip
_PAIRED: list[Look] = [size, length_bias, too_similar, reference_order, *_SHARED]
_UNPAIRED: list[Look] = [size, labels, *_SHARED]
_SERIOUS: list[Severity] = ["problem", "warning", "fine", "note"]


def findings(facts: Facts) -> list[Finding]:
    """All of them, the serious ones first."""
    found = [look(facts) for look in (_PAIRED if facts.kind == "paired" else _UNPAIRED)]
    return sorted(found, key=lambda finding: _SERIOUS.index(finding.severity))
