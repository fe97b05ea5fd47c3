"""A run's folder -> the content of its report: record, metrics by step, scored pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from reflogp.data_schemas import run_record, scored_pairs
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import opened
from reflogp.data_schemas.run_record import RunRecord

Floats = NDArray[np.float64]
METRICS = (
    "loss",
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
)
_HELD_OUT = "eval_"
_LONGEST_LINE = 1 << 20  # bytes of metrics.jsonl; a line has about 500
_LARGEST = 1e300  # JSON numbers can be too large for float64


class Curve(NamedTuple):
    """A metric by step, one point per line of metrics.jsonl; both arrays are float64 [n]."""

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        name: its name on the page.
        folder: its folder.
        record: its record.
        curves: curves by metric name; names of held-out metrics begin with eval_.
        pairs: rows of pairs.parquet; empty if the run wrote none.
    """

    name: str
    folder: Path
    record: RunRecord
    curves: Mapping[str, Curve]
    pairs: Sequence[Mapping[str, Any]]


def gather(folders: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs in these folders.

    Raises:
        InputError: a folder has no finished run, a file in it is damaged, or a run is given twice.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [str(p) for p in dict.fromkeys(places) if places.count(p) > 1]:
        raise InputError(f"{twice[0]}: this run is given twice. Give each run once.")
    return [_run(folder, name) for folder, name in zip(folders, short_names(places), strict=True)]


def short_names(places: Sequence[Path]) -> list[str]:
    """Return the shortest endings of the paths, in whole parts, that tell all of them apart."""
    for parts in range(1, max((len(place.parts) for place in places), default=0) + 1):
        names = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _run(folder: Path, name: str) -> FinishedRun:
    try:
        record = run_record.read(folder)
    except InputError as error:
        raise InputError(f"{error} Give another run, or train this one again.") from error
    if record is None:
        raise InputError(
            f"{folder}: no finished run: it has no {run_record.FILE_NAME}. "
            "Give the --output of `reflogp train`, or for a sweep the folders of its runs. If "
            "the run is active or was killed, train it to its end first."
        )
    return FinishedRun(
        name, folder, record, read_metrics(folder / "metrics.jsonl"), scored_pairs.read(folder)
    )


def read_metrics(path: Path) -> dict[str, Curve]:
    """Return the curves of METRICS that a file has, of training and of held-out pairs.

    Raises:
        InputError: the file cannot be read, or one of its lines is not valid.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with opened(path) as file:
            lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
            for number, line in enumerate(lines, start=1):
                _add(points, _parsed(path, number, line))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). It belongs to the run; train again."
        ) from error
    return {name: Curve(*np.array(found, float).T) for name, found in points.items()}


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = from_json(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error}). Remove the line.") from error
    if not isinstance(entry, dict) or not _is_number(entry.get("step")):
        raise InputError(f"{path}, line {number}: not the metrics of a step. Remove the line.")
    return entry


def _add(points: dict[str, list[tuple[float, float]]], entry: dict[str, Any]) -> None:
    for name in _names():
        value = entry.get(name)
        if value is not None and _is_number(value):  # a non-finite loss leaves a gap
            points.setdefault(name, []).append((entry["step"], value))


def _names() -> Iterable[str]:
    return (prefix + name for prefix in ("", _HELD_OUT) for name in METRICS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST
