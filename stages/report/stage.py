"""Finished runs -> a page, and charts as files if they are wanted."""

from collections.abc import Sequence
from pathlib import Path

from data_schemas.atomic import write_text
from stages.report.drawing import save
from stages.report.gather import gather
from stages.report.page import all_charts, page
from stages.report.render import require_libraries


def report(
    folders: Sequence[Path],
    output: Path | None = None,
    png: Path | None = None,
    svg: Path | None = None,
) -> list[Path]:
    """Write the page, and the charts as files.

    Args:
        folders: of finished runs; none: the page holds the explorer of the loss alone.
        output: the page; by default report.html, in the run's folder if there is one run, and
            explorer.html without a run.
        png: folder for the charts as PNG; None: none are written.
        svg: folder for the charts as SVG.

    Returns:
        The page first, then the files of the charts.

    Raises:
        InputError: a folder holds no finished run, or a library is missing.
    """
    require_libraries()
    runs = gather(folders)
    path = output or _default_output(folders)
    write_text(path, page(runs))
    return [path, *save(all_charts(runs), png, svg)]


def _default_output(folders: Sequence[Path]) -> Path:
    if not folders:
        return Path("explorer.html")
    return (folders[0] if len(folders) == 1 else Path()) / "report.html"
