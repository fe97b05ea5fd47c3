"""Finished runs -> a page, and optionally charts as files."""

from collections.abc import Sequence
from pathlib import Path

from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.ownership import require_apart, require_output, require_page
from reflogp.stages.report.drawing import save
from reflogp.stages.report.gather import gather
from reflogp.stages.report.page import all_charts, page
from reflogp.stages.report.render import require_libraries


def report(
    folders: Sequence[Path],
    output: Path | None = None,
    png: Path | None = None,
    svg: Path | None = None,
) -> list[Path]:
    """Write the page, and the charts as files.

    Args:
        folders: folders of finished runs; if empty, the page has only the loss explorer.
        output: path of the page; by default report.html, in the run's folder if there is one run,
            or explorer.html without runs.
        png: folder for the charts as PNG; not written if None.
        svg: folder for the charts as SVG; not written if None.

    Returns:
        The path of the page, then those of the charts.

    Raises:
        InputError: a folder has no finished run, a library is missing, or an output has files that
            reflogp did not write.
    """
    require_libraries()
    path = output or _default_output(folders)
    require_page("--output", path)
    require_apart("--output", path, {})
    for option, folder in (("--png", png), ("--svg", svg)):
        if folder is not None:
            require_output(folder, "charts", option=option, overwrite=None)
            require_apart(option, folder, {})
    runs = gather(folders)
    text = page(runs)
    charts = save(all_charts(runs), png, svg)
    write_text(path, text)
    return [path, *charts]


def _default_output(folders: Sequence[Path]) -> Path:
    if not folders:
        return Path("explorer.html")
    return (folders[0] if len(folders) == 1 else Path()) / "report.html"
