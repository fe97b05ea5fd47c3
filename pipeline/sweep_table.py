"""What a sweep found, as a table: for people on the terminal, and in Markdown beside the runs."""

from data_schemas.run_record import RunRecord, StepMetrics
from data_schemas.sweep_record import SweepRecord, SweepRun

TITLE = "# A sweep over "
MEANING = (
    "Loss, margin and accuracy over held-out pairs, of the weights that were kept; of runs without "
    "held-out pairs (*), the mean of the last quarter of training."
)


_FIGURES = ("loss", "margin", "acc", "margin/token", "acc/token", "pairs/s", "warnings")


def header(record: SweepRecord) -> tuple[str, ...]:
    """Names of the columns."""
    return (*_varied(record), *_FIGURES)


def rows(record: SweepRecord) -> list[tuple[str, ...]]:
    """A row for each run."""
    return [(*(str(value) for value in run.varied.values()), *_figures(run)) for run in record.runs]


def markdown(record: SweepRecord) -> str:
    """The text of sweep.md."""
    names = header(record)
    table = "".join(map(_line, [names, ("---",) * len(names), *rows(record)]))
    failed = [f"- {run.folder}: {run.error}\n" for run in record.runs if run.error]
    done = [(run.folder, run.run) for run in record.runs if run.run is not None]
    warned = [f"- {folder}, {warning}\n" for folder, run in done for warning in run.warnings]
    sections = [("Failed", failed), ("Warnings", warned)]
    return (
        f"{TITLE}{', '.join(_varied(record))}\n\n"
        f"Cache: `{record.cache}`. {MEANING}\n\n{table}"
        + "".join(f"\n## {title}\n\n{''.join(lines)}" for title, lines in sections if lines)
    )


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _varied(record: SweepRecord) -> list[str]:
    return list(record.runs[0].varied)


def _figures(run: SweepRun) -> tuple[str, ...]:
    if run.run is None:
        return (run.status, *[""] * (len(_FIGURES) - 1))
    found, mark = _final(run.run)
    codes = ", ".join(warning.code for warning in run.run.warnings)
    return (
        f"{found.loss:.4f}{mark}", f"{found.margin:+.4f}", f"{found.accuracy:.3f}",
        _or_none(found.margin_per_token, "+.5f"), _or_none(found.accuracy_per_token, ".3f"),
        f"{run.run.pairs_per_second:.2f}", codes,
    )  # fmt: skip


def _final(record: RunRecord) -> tuple[StepMetrics, str]:
    return (record.evaluation, "") if record.evaluation is not None else (record.last, "*")


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
