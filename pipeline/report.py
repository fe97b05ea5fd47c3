"""Running the report; torch and matplotlib are imported only then."""

from collections.abc import Sequence
from pathlib import Path

from stages.progress import Console


def run_report(
    runs: Sequence[Path], output: Path | None, png: Path | None, svg: Path | None, console: Console
) -> list[Path]:
    """Write the page of these runs, and their charts to folders if any are named.

    Returns:
        What was written, the page first.

    Raises:
        InputError: a folder holds no finished run, or a library is missing.
    """
    from stages.report.stage import report

    if not runs and (png or svg):
        console.warn("--png and --svg have no effect: the explorer alone has no charts.")
        png = svg = None

    what = ", ".join(map(str, runs)) or "the explorer of the loss"
    console.say(f"report: {what}")
    return report(runs, output, png, svg)
