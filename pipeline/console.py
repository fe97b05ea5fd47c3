"""What a person sees: lines, progress with rate and ETA, tables. Plain text where it is piped."""

import io
import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stages.processes import rank
from stages.progress import Advance

_LINES = 10  # that a piped run with figures to tell gives
_NO_WIDTH = 10_000  # columns of a file
_NAME_WIDTH = 8  # of "PROBLEM" and its like


class _Rate(ProgressColumn):
    """Done so far, and how fast."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = task.finished_speed or task.speed
        rate = f", {speed:,.1f} {unit}/s" if speed else ""
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} {unit}{rate}")


class _Bars(Progress):
    """Progress bars, and under them the latest figures: beside a bar 80 columns would cut them."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is shown."""
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(self.note, style="dim", no_wrap=True, overflow="ellipsis")


class TerminalConsole:
    """The Console that stages speak to, over rich."""

    def __init__(self) -> None:
        # Under torchrun the first process speaks for all; what ends any of them is always said.
        quiet = rank() != 0
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
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Advance]:
        """See stages.progress.Console. Where it is piped, each tenth of the way has a line."""
        columns = (TextColumn("{task.description}"), BarColumn(24), _Rate(), TimeRemainingColumn())
        interactive = self._remarks.is_terminal
        told = 0
        with _Bars(*columns, console=self._remarks, disable=not interactive) as progress:
            bar = progress.add_task(what, total=total, unit=unit)
            task = progress.tasks[0]

            def advance(amount: float, note: str = "") -> None:
                nonlocal told
                progress.advance(bar, amount)
                progress.note = note or progress.note
                tenth = int(_LINES * task.completed / total) if total else 0
                if note and not interactive and tenth > told:
                    told = tenth
                    self.say(f"{what}: {task.completed:,.0f}/{total:,.0f} {unit}  {note}")

            yield advance
        if not interactive:
            self.say(f"{what}: {task.completed:,.0f} {unit}")

    def table(
        self, title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()
    ) -> None:
        """Print rows on stdout, the first column being names. A file gets each in one line."""
        table = Table(
            title=title, show_header=bool(header), title_justify="left", box=None, pad_edge=False
        )
        names = header or ("",) * max(map(len, rows))
        table.add_column(names[0], style="bold", no_wrap=True)
        for name in names[1:]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(row[0], *map(Text, row[1:]))
        if self._results.is_terminal:
            self._results.print(table)
            return
        file = io.StringIO()
        RichConsole(file=file, width=_NO_WIDTH, color_system=None).print(table)
        self.text("\n".join(line.rstrip() for line in file.getvalue().splitlines()))

    def text(self, text: str) -> None:
        """Print text on stdout as it is, for other programs to read."""
        self._results.print(text, markup=False, soft_wrap=True)

    def paragraph(self, text: str, *, style: str = "", name: str = "") -> None:
        """Print text on stdout, wrapped, beside a name in a narrow column of its own."""
        indent = " " * (_NAME_WIDTH + 1)
        lines = textwrap.wrap(text, self._results.width, initial_indent=indent,
                              subsequent_indent=indent)  # fmt: skip
        whole = Text("\n".join(lines).replace(indent, name.ljust(len(indent)), 1))
        whole.stylize(style, 0, len(name))
        self._results.print(whole, soft_wrap=True)

    def command(self, text: str) -> None:
        """Print a command on stdout in one line, however long, so that it can be copied."""
        line = Text(f"{' ' * (_NAME_WIDTH + 1)}{text}", style="cyan")
        self._results.print(line, soft_wrap=True)


def quiet_transformers() -> None:
    """No bars and remarks between ours: what goes wrong is raised."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it can do without
