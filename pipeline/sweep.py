"""Runs stage two on one cache for every combination of some settings, one run at a time.

Each run has its own process, which frees its memory at the end and does not affect other runs if it
is killed. Like any run, it is skipped if it is up to date, and resumes from its checkpoint.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import yaml

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import sweep_record
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.ownership import (
    Mark,
    read_mark,
    remove_owned,
    require_apart,
    write_mark,
)
from reflogp.data_schemas.files.storage import reach
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.run_record import RunRecord, StepMetrics
from reflogp.data_schemas.sweep_record import SweepRecord, SweepRun
from reflogp.pipeline.child import ChildFailedError, ChildKilledError, call_in_child
from reflogp.pipeline.config import build, require_known
from reflogp.pipeline.console import TerminalConsole
from reflogp.pipeline.resolve import resolve_start
from reflogp.pipeline.run import run_train
from reflogp.pipeline.standing_run import require_own_output
from reflogp.stages.processes import processes
from reflogp.stages.progress import Console
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.unfinished import require_result_output

Axes = dict[str, list[Any]]
"""The values of each setting that varies."""

_FIXED = ("cache", "output")
_COMMON = (*_FIXED, "overwrite")
_TABLE = "sweep.md"
_FILES = (sweep_record.FILE_NAME, _TABLE)
_HALF = re.compile(r"\.(reflogp\.json|sweep\.(json|md))\.[0-9a-f]{12}\.tmp")  # of a killed sweep
_LONGEST_NAME = 100
TITLE = "# A sweep over "
MEANING = (
    "Loss, margin and accuracy of the final weights on held-out pairs; for runs without held-out "
    "pairs (*), the mean of the last quarter of training."
)
_FIGURES = ("loss", "margin", "acc", "margin/token", "acc/token", "pairs/s", "warnings")


def axes(section: Mapping[str, Any], given: Iterable[str]) -> Axes:
    """The settings to vary: those of the YAML section, then those given as `name=value,value`.

    Raises:
        InputError: there are none, or one is not a setting of stage two or cannot vary.
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
            raise InputError(
                f"--set {name}: it cannot vary: a sweep has one cache, and names a folder for each "
                "run. Leave it out."
            )
        if not values_of_it:
            raise InputError(f"--set {name}: there are no values.")
    return found


def _split(text: str, values: str) -> list[Any]:
    """Split at commas, or parse a YAML list, in which values can have commas."""
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
    """Train once for each combination of `varied`. If a run fails, the others continue.

    Args:
        section: options of stage two from the YAML file.
        given: options of stage two from the command line. `output` is the folder of the sweep.
        varied: see `axes`.
        console: for progress and failures.

    Raises:
        InputError: no combination can be trained, or the sweep cannot be written to its folder.
    """
    if processes() > 1:
        raise InputError("sweep starts its own processes. Run it without torchrun or accelerate.")
    common = build(TrainConfig, _only(_COMMON, section), _only(_COMMON, given))
    reach(common.cache)
    manifest = manifests.read(common.cache)
    old = _own_files(common)
    runs, configs = [], []
    for settings in _combinations(varied):
        folder = folder_name(settings)
        own = {**given, **settings, "output": common.output / folder}
        config, problem = _checked(section, own, manifest)
        configs.append(config)
        runs.append(SweepRun(folder=folder, varied=settings, status="waiting", error=problem))
    if not any(configs):
        problems = "; ".join(dict.fromkeys(str(run.error) for run in runs))
        raise InputError(f"no combination can be trained: {problems}")
    common.output.mkdir(parents=True, exist_ok=True)
    write_mark(common.output, Mark(kind="sweep", files=sorted({*old, *_FILES})))
    for name in filter(_HALF.fullmatch, os.listdir(common.output)):
        (common.output / name).unlink()
    for number, (run, config) in enumerate(zip(list(runs), configs, strict=True)):
        if config is None:  # report it before the first run starts
            runs[number] = _failed(run, console)
    for number, (run, config) in enumerate(zip(list(runs), configs, strict=True)):
        if config is not None:
            console.say(f"run {number + 1} of {len(runs)}: {run.folder}")
            runs[number] = _trained(run, config, console)
        record = SweepRecord(reflogp_version=version("reflogp"), cache=str(common.cache), runs=runs)
        sweep_record.write(common.output, record)
        write_text(common.output / _TABLE, markdown(record))
    if all(run.status == "done" for run in runs):  # the previous content is no longer needed
        remove_owned(common.output, set(old).difference(_FILES))
        write_mark(common.output, Mark(kind="sweep", files=list(_FILES)))
    return record


def _only(names: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _combinations(varied: Axes) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*varied.values()):
        yield dict(zip(varied, values, strict=True))


def _own_files(common: TrainConfig) -> list[str]:
    """Files that reflogp wrote in the folder of the sweep before.

    Raises:
        InputError: the folder is an input, or has scored rows or files of other people.
    """
    output = common.output
    require_apart("--output", output, {"cache": common.cache})
    if read_mark(output) is None and sweep_record.is_there(
        output
    ):  # an earlier reflogp left no mark
        own = [sweep_record.FILE_NAME]
        if (output / _TABLE).is_file() and (output / _TABLE).read_text().startswith(TITLE):
            own.append(_TABLE)
    else:
        mark = require_result_output(output, "sweep", overwrite=common.overwrite)
        own = mark.files if mark is not None else []
    for name in _FILES:
        if name not in own and os.path.lexists(output / name):
            raise InputError(
                f"--output {output}: reflogp did not write {name}, and the sweep needs this name. "
                "Move it away, or give another folder."
            )
    return own


def _checked(
    section: Mapping[str, Any], own: dict[str, Any], manifest: Manifest
) -> tuple[TrainConfig | None, str | None]:
    """The configuration of one run, or the reason why it is invalid."""
    try:
        config = build(TrainConfig, section, own)
        policy = resolve_start(
            config.policy, config.adapter, manifest, "policy", trusted=config.trust_remote_code
        )
        require_own_output(config, policy)
    except InputError as error:
        return None, str(error)
    return config, None


def _trained(run: SweepRun, config: TrainConfig, console: Console) -> SweepRun:
    problem: str
    try:
        done = call_in_child(_train, config, config.grace_seconds)
        return run.model_copy(update={"status": "done", "run": done})
    except ChildFailedError as error:
        lines = str(error).splitlines()
        for line in lines:
            console.say(line)
        problem = lines[-1]
    except ChildKilledError as error:
        problem = (
            f"{error}, most often because it ran out of memory. Lower --batch-size, or set "
            "--gradient-checkpointing."
        )
    except (ReflogpError, OSError) as error:
        problem = str(error)
    return _failed(run.model_copy(update={"error": problem}), console)


def _failed(run: SweepRun, console: Console) -> SweepRun:
    console.warn(f"{run.folder} failed: {run.error}")
    return run.model_copy(update={"status": "failed"})


def _train(config: TrainConfig) -> RunRecord:
    return run_train(config, TerminalConsole())


def folder_name(settings: Mapping[str, Any]) -> str:
    """A unique folder name for these settings, such as `loss=dpo,beta=0.1`."""
    text = ",".join(f"{name}={value}" for name, value in settings.items())
    plain = re.sub(r"[^\w.,=+-]", "-", text, flags=re.ASCII)
    if plain == text and len(text) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain[:_LONGEST_NAME]}-{digest}"


def header(record: SweepRecord) -> tuple[str, ...]:
    """The names of the columns."""
    return (*_varied(record), *_FIGURES)


def rows(record: SweepRecord) -> list[tuple[str, ...]]:
    """A row for each run."""
    return [(*(str(value) for value in run.varied.values()), *_figures(run)) for run in record.runs]


def markdown(record: SweepRecord) -> str:
    """The text of sweep.md."""
    names = header(record)
    table = "".join(map(_line, [names, ("---",) * len(names), *rows(record)]))
    failed = [f"- {run.folder}: {run.error}\n" for run in record.runs if run.error]
    done = [(run.folder, run.run) for run in record.runs if run.run is not None]
    warned = [f"- {folder}, {warning}\n" for folder, run in done for warning in run.warnings]
    sections = [("Failed", failed), ("Warnings", warned)]
    return (
        f"{TITLE}{', '.join(_varied(record))}\n\n"
        f"Cache: `{record.cache}`. {MEANING}\n\n{table}"
        + "".join(f"\n## {title}\n\n{''.join(lines)}" for title, lines in sections if lines)
    )


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _varied(record: SweepRecord) -> list[str]:
    return list(record.runs[0].varied)


def _figures(run: SweepRun) -> tuple[str, ...]:
    if run.run is None:
        return (run.status, *[""] * (len(_FIGURES) - 1))
    found, mark = _final(run.run)
    codes = ", ".join(warning.code for warning in run.run.warnings)
    return (
        f"{found.loss:.4f}{mark}", f"{found.margin:+.4f}", f"{found.accuracy:.3f}",
        _or_none(found.margin_per_token, "+.5f"), _or_none(found.accuracy_per_token, ".3f"),
        f"{run.run.pairs_per_second:.2f}", codes,
    )  # fmt: skip


def _final(record: RunRecord) -> tuple[StepMetrics, str]:
    return (record.evaluation, "") if record.evaluation is not None else (record.last, "*")


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
