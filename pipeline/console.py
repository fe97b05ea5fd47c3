"""What a person sees: lines, progress with rate and ETA, tables. Plain text where it is piped."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Rate(ProgressColumn):
    """Done so far, and how fast."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = task.finished_speed or task.speed
        rate = f", {speed:,.1f} {unit}/s" if speed else ""
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} {unit}{rate}")


class TerminalConsole:
    """The Console that stages speak to, over rich."""

    def __init__(self) -> None:
        # Under torchrun the first process speaks for all; what ends any of them is always said.
        quiet = os.environ.get("RANK", "0") != "0"
        # Progress and remarks go to stderr; stdout is for results, so that it can be piped.
        self._remarks = RichConsole(stderr=True, highlight=False, quiet=quiet)
        self._results = RichConsole(highlight=False, quiet=quiet)
        self._errors = RichConsole(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        """See stages.progress.Console."""
        self._remarks.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """See stages.progress.Console."""
        self._remarks.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    def error(self, message: str) -> None:
        """Print why the command ends."""
        self._errors.print(f"error: {message}", style="red", markup=False, soft_wrap=True)

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
        """See stages.progress.Console."""
        columns = (TextColumn("{task.description}"), BarColumn(24), _Rate(), TimeRemainingColumn())
        interactive = self._remarks.is_terminal
        with Progress(*columns, console=self._remarks, disable=not interactive) as progress:
            task = progress.add_task(what, total=total, unit=unit)
            yield lambda amount: progress.advance(task, amount)
        if not interactive:
            done = progress.tasks[0].completed
            self.say(f"{what}: {done:,.0f} {unit}")

    def table(
        self, title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()
    ) -> None:
        """Print rows on stdout, the first column being names."""
        table = Table(
            title=title, show_header=bool(header), title_justify="left", box=None, pad_edge=False
        )
        names = header or ("",) * max(map(len, rows))
        table.add_column(names[0], style="bold", no_wrap=True)
        for name in names[1:]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(row[0], *map(Text, row[1:]))
        self._results.print(table)

    def text(self, text: str) -> None:
        """Print text on stdout as it is, for other programs to read."""
        self._results.print(text, markup=False, soft_wrap=True)
