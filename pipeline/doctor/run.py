"""Runs all checks, prints a line for each, and writes the report."""

import re
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from getpass import getuser
from importlib.metadata import version
from pathlib import Path

from reflogp.data_schemas.doctor_report import Check, DoctorReport, read
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.pipeline.child import call_in_child
from reflogp.pipeline.console import TerminalConsole
from reflogp.pipeline.doctor.stage_one import stage_one
from reflogp.pipeline.doctor.stage_two import stage_two
from reflogp.pipeline.doctor.task import Found, Task
from reflogp.stages.doctor.machine import checks, survey
from reflogp.stages.model.loading import cause

# transformers replaces a Qwen2.5's tokenizer by its own, which does not know our words
_ARCHITECTURES = ("Llama 3", "Qwen3", "Gemma 3", "Qwen3-MoE")
_FOLDERS = re.compile(r"(?<![\w.])(?:/[\w.+@~-]+)+/(?=[\w.+@~-])")


def run_doctor(
    engine: str, console: TerminalConsole, *, quick: bool, file: Path | None = None
) -> DoctorReport:
    """Check what is installed, then both stages, and print what is found.

    Args:
        engine: --engine of stage one.
        console: for the lines.
        quick: whether to try one architecture only, and to time nothing.
        file: for the report, which is written after each part; None to write none.

    Raises:
        InputError: the file cannot be written.
    """
    if file is not None:
        _require_report_file(file)
    started, machine = time.monotonic(), survey()
    found = list[Found]()

    def add(more: Found) -> DoctorReport:
        """Print what a part found, and write all that was found so far."""
        found.append(more)
        _show(more.checks, console)
        report = DoctorReport(
            reflogp_version=version("reflogp"),
            made_at=datetime.now(UTC),
            seconds=time.monotonic() - started,
            machine=machine,
            checks=[check for one in found for check in one.checks],
            timings=[timing for one in found for timing in one.timings],
        )
        if file is not None:
            write_text(file, report.model_dump_json(indent=2) + "\n")
        return report

    report = add(Found(checks(machine), []))
    with tempfile.TemporaryDirectory(prefix="reflogp-") as folder:
        families = _ARCHITECTURES[:1] if quick else _ARCHITECTURES
        task = Task(Path(folder), families, engine, thorough=not quick)
        for stage in (stage_one, stage_two):
            report = add(_alone(stage, task))
    console.say(_verdict(report))
    return report


def _require_report_file(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        InputError: its folder does not exist, or it holds something other than such a report.
    """
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: there is no folder {path.parent}. Create it.")
    if path.exists():
        try:
            read(path)
        except InputError as error:
            raise InputError(
                f"--json {path}: not a report of reflogp; it stays. Give another name."
            ) from error


def _verdict(report: DoctorReport) -> str:
    """How many checks have which result, in a line."""
    counted = Counter(check.result for check in report.checks)
    parts = [f"{counted[result]} {result}" for result in ("ok", "off", "skipped")]
    return f"{', '.join(parts)}, in {report.seconds:.0f} s"


def anonymous(text: str) -> str:
    """`text` without the folders of paths, the host's name and the user's."""
    text = _FOLDERS.sub("", text)
    names = [socket.gethostname()]
    with suppress(OSError, KeyError):  # a user without a name
        names.append(getuser())
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return text


def _alone(stage: Callable[[Task], Found], task: Task) -> Found:
    """Run a stage in a process of its own. If it dies, that is the result."""
    try:
        found = call_in_child(stage, task, grace_seconds=0)
    except ReflogpError as error:
        part = "stage one" if stage is stage_one else "stage two"
        lost = Check(part=part, name="all of it", result="off", why=cause(error))
        found = Found([lost], [])
    hidden = [check.model_copy(update={"why": anonymous(check.why)}) for check in found.checks]
    return found._replace(checks=hidden)


def _show(found: list[Check], console: TerminalConsole) -> None:
    console.table("", [(check.result, check.part, check.name, check.why) for check in found])
