"""Tables of the page: final figures, differing settings, provenance. Each run is a column."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from reflogp.data_schemas.run_record import RunRecord, StepMetrics
from reflogp.stages.report.gather import FinishedRun

TableRows = list[tuple[str, list[str]]]
_PLACES = {"output"}  # differ between any two runs


class Tile(NamedTuple):
    """A figure at the top of a single run's page."""

    name: str
    value: str
    note: str


def tiles(record: RunRecord) -> list[Tile]:
    """Return the main figures, of the held-out pairs or else of the last quarter of training."""
    final, where = _final(record), "held out" if record.evaluation else "last quarter"
    first = record.first
    return [
        Tile("loss", f"{final.loss:.4f}", f"{where}; first step {first.loss:.4f}"),
        Tile("margin", _signed(final.margin), f"{where}; first step {_signed(first.margin)}"),
        Tile("accuracy", f"{final.accuracy:.1%}", f"{where}; first step {first.accuracy:.1%}"),
        Tile("steps", f"{record.steps:,}", f"{record.pairs:,} pairs, {_time(record.seconds)}"),
        Tile("warnings", str(len(record.warnings)), "see below" if record.warnings else "none"),
    ]


def final_figures(runs: Sequence[FinishedRun]) -> TableRows:
    """Return the final figures of each run."""

    def row(name: str, form: str, of: str) -> tuple[str, list[str]]:
        return name, [_or_dash(getattr(_final(run.record), of), form) for run in runs]

    return [
        row("loss", ".4f", "loss"),
        row("margin", "+.4f", "margin"),
        row("accuracy", ".1%", "accuracy"),
        row("margin per token", "+.5f", "margin_per_token"),
        row("accuracy per token", ".1%", "accuracy_per_token"),
        ("figures are of", [_where(run.record) for run in runs]),
        ("warnings", [", ".join(w.code for w in run.record.warnings) or "none" for run in runs]),
        ("pairs/s", [f"{run.record.pairs_per_second:.2f}" for run in runs]),
    ]


def settings(runs: Sequence[FinishedRun], *, differing: bool = False) -> TableRows:
    """Return all settings, or only those that differ between the runs."""
    names = dict.fromkeys(name for run in runs for name in run.record.settings)
    rows = [(name, [_text(run.record.settings.get(name)) for run in runs]) for name in names]
    return [
        (name, values)
        for name, values in rows
        if not differing or (name not in _PLACES and len(set(values)) > 1)
    ]


def provenance(runs: Sequence[FinishedRun]) -> TableRows:
    """Return each run's inputs, date, duration and version."""
    records = [run.record for run in runs]
    rows = [
        ("folder", [str(run.folder) for run in runs]),
        ("cache", [r.cache for r in records]),
        ("row weights", [_text(r.weights) for r in records]),
        ("policy", [r.policy for r in records]),
        ("adapter", [_text(r.adapter) for r in records]),
        ("trained parameters", [f"{r.trained_parameters:,}" for r in records]),
        ("pairs trained on", [f"{r.pairs:,}" for r in records]),
        ("pairs held out", [f"{r.evaluated_pairs:,}" for r in records]),
        ("kept step", [str(r.best_step or r.steps) for r in records]),
        ("resumed from step", [_text(r.resumed_from) for r in records]),
        ("processes", [str(r.processes) for r in records]),
        ("started", [f"{r.started_at:%Y-%m-%d %H:%M:%S %Z}" for r in records]),
        ("took", [f"{_time(r.seconds)}, {r.pairs_per_second:.2f} pairs/s" for r in records]),
        ("reflogp", [r.reflogp_version for r in records]),
        ("fingerprint", [r.fingerprint for r in records]),
    ]
    return [(name, values) for name, values in rows if set(values) != {"-"}]


def _final(record: RunRecord) -> StepMetrics:
    return record.evaluation or record.last


def _where(record: RunRecord) -> str:
    if record.evaluation is None:
        return "the last quarter of training"
    return f"{record.evaluated_pairs:,} held-out pairs"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    return "-" if value is None or value == "" else str(value)
