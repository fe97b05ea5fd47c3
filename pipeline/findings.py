"""A diagnosis on the terminal."""

from pipeline.console import TerminalConsole
from stages.diagnose.diagnosis import Diagnosis
from stages.diagnose.group_table import LEGEND, group_table

_STYLES = {"problem": "bold red", "warning": "bold yellow", "fine": "green", "note": "dim"}


def print_diagnosis(found: Diagnosis, console: TerminalConsole) -> None:
    """The verdict, each finding with what to do, and what to begin with."""
    console.paragraph(found.verdict, name="VERDICT", style="bold")
    for finding in found.findings:
        console.text("")
        severity = finding.severity
        title = f"{finding.name}: {finding.title}"
        console.paragraph(title, name=severity.upper(), style=_STYLES[severity])
        if finding.advice:
            console.paragraph(finding.advice)
        for command in finding.commands:
            console.command(command)
    _print_groups(found, console)
    suggestion = found.suggestion
    console.text("")
    console.paragraph(
        f"{suggestion.loss}, beta {suggestion.beta:g}: {suggestion.reason}.", name="BEGIN"
    )
    console.command(suggestion.command)


def _print_groups(found: Diagnosis, console: TerminalConsole) -> None:
    """A table for each kept column with few values, and what its columns are."""
    tables = [group_table(one, found.kind) for one in found.grouped if one.groups is not None]
    for header, *rows in tables:
        console.text("")
        console.table("", rows, header)
    if tables and found.kind == "paired":
        console.text("")
        console.paragraph(LEGEND)
