"""Runs -> one self-contained HTML page.

The page's content security policy allows only the script with the given digest. Even if text from
the data reached the page unescaped, no browser would run it.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reflogp.stages.report import curves, pair_charts, tables
from reflogp.stages.report.chart import Chart
from reflogp.stages.report.drawing import drawn
from reflogp.stages.report.explorer import explorer_data, first_pairs
from reflogp.stages.report.gather import FinishedRun
from reflogp.stages.report.render import render
from reflogp.stages.report.shown_pairs import LEVELS, scale, shown

LIMIT = 2_000_000  # bytes
_FOLDER = Path(__file__).parent
_SCRIPTS = ("losses.js", "explorer.js", "pairs.js", "readout.js")


def page(runs: Sequence[FinishedRun]) -> str:
    """Return the page as text; without runs, it has only the explorer.

    The page shows fewer pairs if it would exceed LIMIT, and none for very many runs.
    """
    text = ""
    for each in (4, 2, 1, 0):  # pairs per reason to show one
        text = _page(runs, each)
        if len(text.encode()) < LIMIT:
            break
    return text


def all_charts(runs: Sequence[FinishedRun]) -> list[Chart]:
    """Return the charts to write to files: the curves, and the pair charts of each run."""
    found = curves.charts(runs) if runs else []
    for number, run in enumerate(runs, start=1):
        suffix = f"-{number}" if len(runs) > 1 else ""
        found += [c._replace(name=c.name + suffix) for c in pair_charts.charts(run)]
    return found


def _page(runs: Sequence[FinishedRun], each: int) -> str:
    from markupsafe import Markup

    script = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    return render(
        _FOLDER / "page.html.jinja",
        **_values(runs, each) if runs else {"title": "The losses of preference training"},
        runs=runs,
        explorer=explorer_data(runs),
        with_pairs=any(run.pairs for run in runs),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own files
        script_digest=f"sha256-{digest}",
        version=version("reflogp"),
    )


def _values(runs: Sequence[FinishedRun], each: int) -> dict[str, Any]:
    single = len(runs) == 1
    return {
        "title": f"Run {runs[0].name}" if single else f"{len(runs)} runs side by side",
        "subtitle": _subtitle(runs[0]) if single else ", ".join(run.name for run in runs),
        "names": [run.name for run in runs],
        "tiles": tables.tiles(runs[0].record) if single else [],
        "figures": tables.final_figures(runs),
        "differences": tables.settings(runs, differing=True),
        "settings": tables.settings(runs),
        "provenance": tables.provenance(runs),
        "warnings": [(run.name, warning) for run in runs for warning in run.record.warnings],
        "curves_note": curves.NOTE,
        "curves": [drawn(chart) for chart in curves.charts(runs)],
        "sections": [
            _section(run, number, first, each if single else each // 2, single)
            for number, (run, first) in enumerate(zip(runs, first_pairs(runs), strict=True))
            if run.pairs and each
        ],
        "without_pairs": [
            run.name for run in runs if not run.pairs and run.record.kind == "paired"
        ],
        "levels": LEVELS,
    }


def _subtitle(run: FinishedRun) -> str:
    settings = run.record.settings
    return (
        f"{settings.get('loss')}, beta {settings.get('beta')}, from {run.record.policy}, on "
        f"{run.record.cache}"
    )


def _section(run: FinishedRun, number: int, first: int, each: int, single: bool) -> dict[str, Any]:
    """Return the page's section on one run's scored pairs."""
    eval_ = run.pairs[0]["split"] == "eval"
    what = "held-out pairs" if eval_ else "training pairs"
    prefix = "" if single else f"run{number}-"
    return {
        "title": "Single pairs" if single else f"Single pairs of {run.name}",
        "note": f"A sample of {len(run.pairs)} {what}, scored by the policy that was kept.",
        "charts": [drawn(c._replace(name=prefix + c.name)) for c in pair_charts.charts(run)],
        "shown": shown(run.pairs, each),
        "scale": scale(run.pairs),
        "first_pair": first,
    }
