"""One cache, many runs of stage two: every combination of some settings, one run after the other.

Each run has a process of its own, so that its memory is free when it ends and a run that is killed
takes no other with it. A run is up to date, or goes on from its checkpoint, as any other.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import yaml

from data_schemas import sweep_record
from data_schemas.atomic import write_text
from data_schemas.errors import InputError, ReflogpError
from data_schemas.run_record import RunRecord
from data_schemas.sweep_record import SweepRecord, SweepRun
from pipeline.config import build, require_known
from pipeline.console import TerminalConsole
from pipeline.run import run_train
from pipeline.sweep_table import markdown
from stages.processes import processes
from stages.progress import Console
from stages.train.config import TrainConfig

Axes = dict[str, list[Any]]
"""The settings that vary, each with its values."""

_FIXED = ("cache", "output")
_LONGEST_NAME = 100


def axes(section: Mapping[str, Any], given: Iterable[str]) -> Axes:
    """The settings to vary: those of the YAML section, then those given as `name=value,value`.

    Raises:
        InputError: there are none, one is no setting of stage two, or one cannot vary.
    """
    found: Axes = {name: _listed(values) for name, values in section.items()}
    for text in given:
        name, _, values = text.partition("=")
        found[name.strip().replace("-", "_")] = _split(text, values.strip())
    if not found:
        raise InputError(
            "there is nothing to vary: give --set name=value,value, or a YAML section 'sweep'."
        )
    require_known(found, TrainConfig.model_fields, "--set", "setting")
    for name, values_of_it in found.items():
        if name in _FIXED:
            raise InputError(f"--set {name}: a sweep has one cache, and a folder for each run.")
        if not values_of_it:
            raise InputError(f"--set {name}: there are no values.")
    return found


def _split(text: str, values: str) -> list[Any]:
    """Split at commas; a value with commas stands in a YAML list: [dpo, "dpo=1,sft=0.2"]."""
    if not values.startswith("["):
        return [value.strip() for value in values.split(",") if value.strip()]
    try:
        return _listed(yaml.safe_load(values))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--set {text}: not a valid list: {reason}") from error


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def run_sweep(
    section: Mapping[str, Any], given: Mapping[str, Any], varied: Axes, console: Console
) -> SweepRecord:
    """Train once for each combination of `varied`; a run that fails is told of, and the rest go on.

    Args:
        section: of the YAML file, for stage two.
        given: of the command line, for stage two. `output` is the folder of the sweep.
        varied: see `axes`.
        console: where to speak.

    Raises:
        InputError: what all runs have in common cannot be used.
    """
    if processes() > 1:
        raise InputError("sweep makes its own processes: call it without torchrun or accelerate.")
    common = build(TrainConfig, section, given)
    runs = [
        SweepRun(folder=folder_name(settings), varied=settings, status="waiting")
        for settings in _combinations(varied)
    ]
    for number, run in enumerate(runs):
        console.say(f"run {number + 1} of {len(runs)}: {run.folder}")
        own = {**given, **run.varied, "output": common.output / run.folder}
        runs[number] = run.model_copy(update=_tried(section, own, console))
        record = SweepRecord(reflogp_version=version("reflogp"), cache=str(common.cache), runs=runs)
        sweep_record.write(common.output, record)
        write_text(common.output / "sweep.md", markdown(record))
    return record


def _combinations(varied: Axes) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*varied.values()):
        yield dict(zip(varied, values, strict=True))


def _tried(section: Mapping[str, Any], own: dict[str, Any], console: Console) -> dict[str, Any]:
    """How one run ended, as fields of SweepRun."""
    try:
        config = build(TrainConfig, section, own)
    except InputError as error:  # two settings that do not go together
        problem: str | None = str(error)
    else:
        # A process of its own: its memory is free when it ends.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            run = processes.submit(_train, config)
            problem = _problem(run.exception(), console)
        if problem is None:
            return {"status": "done", "run": run.result()}
    console.warn(f"failed: {problem}")
    return {"status": "failed", "error": problem}


def _train(config: TrainConfig) -> RunRecord:
    return run_train(config, TerminalConsole())


def _problem(error: BaseException | None, console: Console) -> str | None:
    """What to say of it."""
    if error is None:
        return None
    if isinstance(error, BrokenProcessPool):
        return (
            "its process was killed; most often, memory ran out. Lower --batch-size, or set "
            "--gradient-checkpointing."
        )
    if isinstance(error, ReflogpError | OSError):
        return str(error)
    console.say(str(error.__cause__))  # the traceback of the other process
    return f"{type(error).__name__}: {error}"


def folder_name(settings: Mapping[str, Any]) -> str:
    """A plain name, another one for other settings: `loss=dpo,beta=0.1`."""
    text = ",".join(f"{name}={value}" for name, value in settings.items())
    plain = re.sub(r"[^\w.,=+-]", "-", text, flags=re.ASCII)
    if plain == text and len(text) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain[:_LONGEST_NAME]}-{digest}"
