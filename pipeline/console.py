"""Prints lines, progress with rate and ETA, and tables; plain text if the output is not a terminal.

A file or pipe gets progress as lines, and each row of a table as one line.
"""

import io
import json
import logging
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from reflogp.stages.processes import rank
from reflogp.stages.progress import Advance

_PAUSE_SECONDS = 30.0  # between two progress lines in a file
_RATE_SECONDS = 600.0  # averaging time of a rate; work that comes in large pieces needs so much
_NO_WIDTH = 10_000  # columns of a file
_NAME_WIDTH = 8  # of a name such as "PROBLEM"
_INDENT = "    "  # of a passage

Cell = str | tuple[str, ...]
"""A table cell: one line, or several."""

# Characters that move the cursor, clear the screen, start a line or change the writing direction:
# control characters, separators, direction marks, zero-width characters, bytes that are not UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` in one line, with escapes for characters that a terminal would act on."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _shown(cell: Cell) -> Text:
    lines = (cell,) if isinstance(cell, str) else cell
    return Text("\n".join(map(visible, lines)))


def visible_json(text: str) -> str:
    """Equivalent JSON without characters that a terminal would act on."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    escape = json.dumps(character)[1:-1]
    return escape if escape != character else f"\\u{ord(character):04x}"  # json leaves DEL as it is


class _Rate(ProgressColumn):
    """Shows the amount done and the rate."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = f", {_rate(speed, task.fields['unit'])}" if speed else ""
        return Text(f"{_amount(task)}{rate}")


class _Bars(Progress):
    """Progress bars with the latest figures below, since 80 columns have no room next to a bar."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, and the figures if there are any."""
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(self.note, style="dim", no_wrap=True, overflow="ellipsis")


class TerminalConsole:
    """The Console of the stages, based on rich. All text goes through `visible`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        # Under torchrun, only the first process prints; but every process prints its errors.
        quiet = rank() != 0
        # Progress and remarks go to stderr, and results to stdout, which can be piped.
        # emoji=False, since a name such as a:dog:b is not an emoji.
        self._remarks = RichConsole(stderr=True, highlight=False, emoji=False, quiet=quiet)
        self._results = RichConsole(highlight=False, emoji=False, quiet=quiet)
        self._errors = RichConsole(stderr=True, highlight=False, emoji=False)
        self._clock = clock

    def say(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self._remarks.print(Text(visible(message)), soft_wrap=True)

    def warn(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self._remarks.print(Text(visible(f"warning: {message}"), "yellow"), soft_wrap=True)

    def next(self, *words: str) -> None:
        """Print the command that people usually give next, on stderr, ready to copy."""
        self.say(f"Next: {shlex.join(words)}")

    def error(self, message: str) -> None:
        """Print the error that ends the command."""
        self._errors.print(Text(visible(f"error: {message}"), "red"), soft_wrap=True)

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Advance]:
        """See reflogp.stages.progress.Console. A file gets a line every 30 seconds."""
        left = TimeRemainingColumn(elapsed_when_finished=True)
        columns = (TextColumn("{task.description}"), BarColumn(24), _Rate(), left)
        interactive = self._remarks.is_terminal
        begin = told_at = self._clock()
        with _Bars(
            *columns, console=self._remarks, disable=not interactive, get_time=self._clock,
            speed_estimate_period=_RATE_SECONDS,
        ) as progress:  # fmt: skip
            bar = progress.add_task(what, total=total, unit=unit)
            task = progress.tasks[0]

            def advance(amount: float, note: str = "") -> None:
                nonlocal told_at
                progress.advance(bar, amount)
                progress.note = note or progress.note
                if not interactive and self._clock() - told_at >= _PAUSE_SECONDS:
                    told_at = self._clock()
                    self.say(_line(task, progress.note))

            yield advance
        if not interactive:
            taken = round(self._clock() - begin)
            time_taken = f" in {timedelta(seconds=taken)}" if taken else ""
            self.say(f"{what}: {_counted(task.completed, unit)}{time_taken}")

    def table(
        self, title: Cell, rows: Sequence[tuple[Cell, ...]], header: tuple[str, ...] = ()
    ) -> None:
        """Print rows on stdout; the first column has names. In a file, each row is one line.

        A title or cell with several lines is a tuple.
        """
        table = Table(
            title=_shown(title) if title else None, show_header=bool(header), title_justify="left",
            box=None, pad_edge=False,
        )  # fmt: skip
        names = header or ("",) * max(map(len, rows))
        table.add_column(Text(visible(names[0])), style="bold", no_wrap=True)
        for name in names[1:]:
            table.add_column(Text(visible(name)), overflow="fold")
        for row in rows:
            table.add_row(*map(_shown, row))
        if self._results.is_terminal:
            self._results.print(table)
            return
        file = io.StringIO()
        RichConsole(file=file, width=_NO_WIDTH, color_system=None).print(table)
        for line in file.getvalue().splitlines():
            self.text(line.rstrip())

    def text(self, text: str) -> None:
        """Print a line on stdout."""
        self._results.print(Text(visible(text)), soft_wrap=True)

    def json(self, text: str) -> None:
        """Print JSON on stdout, for other programs to read."""
        self._results.print(Text(visible_json(text)), soft_wrap=True)

    def paragraph(self, text: str, *, style: str = "", name: str = "") -> None:
        """Print wrapped text on stdout, next to a narrow column with a name."""
        indent = " " * (_NAME_WIDTH + 1)
        lines = textwrap.wrap(visible(text), self._results.width, initial_indent=indent,
                              subsequent_indent=indent)  # fmt: skip
        whole = Text("\n".join(lines).replace(indent, visible(name).ljust(len(indent)), 1))
        whole.stylize(style, 0, len(name))
        self._results.print(whole, soft_wrap=True)

    def heading(self, text: str, style: str = "bold") -> None:
        """Print a line on stdout above a passage."""
        terminal = self._results.is_terminal
        self._results.print(Text(visible(text), style), soft_wrap=not terminal)

    def passage(self, pieces: Iterable[tuple[str, str]]) -> None:
        """Print pieces of text, each with its style, on stdout as an indented block.

        Line breaks stay. Every line is indented, so no text of the data looks like a line of ours.
        """
        whole = Text()
        for text, style in pieces:
            whole.append("\n".join(map(visible, text.split("\n"))), style)
        whole.remove_suffix("\n")
        indent, console = Text(_INDENT), self._results
        for line in whole.split("\n", allow_blank=True):
            width = max(console.width - len(indent), 1)
            parts = line.wrap(console, width, overflow="fold") if console.is_terminal else ()
            for part in parts or [line]:
                console.print(indent + part, soft_wrap=True)

    def command(self, text: str) -> None:
        """Print a command on stdout in one line of any length, for copying."""
        line = Text(f"{' ' * (_NAME_WIDTH + 1)}{visible(text)}", style="cyan")
        self._results.print(line, soft_wrap=True)


class LogConsole:
    """A Console for programs: remarks go to the logger `reflogp`, without progress bars.

    If the program does not configure logging, Python still prints the warnings.
    """

    def say(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self._log(logging.INFO, message)

    def warn(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self._log(logging.WARNING, message)

    @contextmanager
    def track(self, what: str, total: float | None, unit: str) -> Iterator[Advance]:
        """See reflogp.stages.progress.Console."""
        yield lambda amount, note="": None

    def _log(self, level: int, message: str) -> None:
        if rank() == 0:
            logging.getLogger("reflogp").log(level, "%s", visible(message))


def _amount(task: Task) -> str:
    """The amount done, of the total if there is one."""
    unit = task.fields["unit"]
    if task.total is None:
        return _counted(task.completed, unit)
    return f"{task.completed:,.0f}/{_counted(task.total, unit)}"


def _counted(amount: float, unit: str) -> str:
    """3 steps, 1 step."""
    return f"{amount:,.0f} {unit.removesuffix('s') if amount == 1 else unit}"


def _rate(speed: float, unit: str) -> str:
    """`speed` in units per second, or in seconds per unit if one takes longer than a second."""
    if speed < 1:
        return f"{1 / speed:,.1f} s/{unit.removesuffix('s')}"
    return f"{speed:,.1f} {unit}/s"


def _line(task: Task, note: str) -> str:
    """A progress line: amount done, rate, remaining time, and the latest figures."""
    done, total, rate = task.completed, task.total, task.speed
    parts = [f"{task.description}: {_amount(task)}"]
    if total:
        parts.append(f"{done / total:.0%}")
    if rate:
        parts.append(_rate(rate, task.fields["unit"]))
    if rate and total:
        parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
    return ", ".join(parts) + (f"  {note}" if note else "")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off the progress bars and remarks of transformers within. Errors are raised anyway."""
    from transformers.utils import logging as theirs

    kernels = logging.getLogger("bitsandbytes")  # it warns about optional kernels
    levels, bars = (theirs.get_verbosity(), kernels.level), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    kernels.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(levels[0])
        kernels.setLevel(levels[1])
        if bars:
            theirs.enable_progress_bar()
