"""The command: parse, call, print, exit code."""

import sys
from dataclasses import asdict
from importlib.metadata import version
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.location import location
from reflogp.pipeline.cli_reading import AsJson, Cache, Trust, reading
from reflogp.pipeline.config import (
    build,
    known_to,
    load_file,
    of_training,
    options_of,
    overridden,
    read_yaml,
)
from reflogp.pipeline.console import TerminalConsole
from reflogp.pipeline.foreign import advice_on, as_yaml, converted
from reflogp.pipeline.help import Command, Commands
from reflogp.pipeline.look import run_dry
from reflogp.pipeline.plan import plan_rows, run_plan
from reflogp.pipeline.run import (
    require_output_of_both,
    run_merge,
    run_precompute,
    run_share,
    run_train,
)
from reflogp.pipeline.summary import (
    cache_rows,
    losses_table,
    train_rows,
)
from reflogp.pipeline.sweep import MEANING, axes, header, run_sweep
from reflogp.pipeline.sweep import rows as sweep_rows
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.signals import ending
from reflogp.stages.train.config import TrainConfig

ListLosses = Annotated[
    bool | None, typer.Option("--list-losses", help="Print a table of the losses and exit.")
]

DryRun = Annotated[
    bool | None,
    typer.Option(
        "--dry-run",
        help="Show what the first 100 rows become: the use of columns, the quarantined rows, and "
        "the tokens of the first rows. Scores and writes nothing, and needs no weights.",
    ),
]

OldShare = Annotated[str | None, typer.Option("--shard", hidden=True)]  # what --share was called

Varied = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE,...", help="An option of stage two and the values to try. "
        "Several --set try every combination. If a value has commas, give a list: "
        "--set 'loss=[dpo, \"dpo=1,sft=0.2\"]'. In YAML: a section 'sweep' with a list per key.",
    ),
]  # fmt: skip

# the base class of Typer's errors for an invalid command line
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="reflogp",
    cls=Commands,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Options can also come from a YAML file with the sections 'precompute', 'train' and "
    "'sweep': reflogp run --config run.yaml. Exit codes: 0 success, 1 failure, 2 bad input.",
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"reflogp {version('reflogp')}")
        raise typer.Exit


@app.callback()
def reflogp(
    context: typer.Context,
    of_reflogp: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version."),
    ] = False,
) -> None:
    """Take the frozen reference model out of DPO training.

    Stage one (precompute) scores every chosen and rejected response under the reference once and
    caches the log-probs. Stage two (train) trains the policy against the cache, without the
    reference in memory.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=Command)
@options_of(PrecomputeConfig, shard=OldShare, dry_run=DryRun)
def precompute(
    config: Path | None = None, shard: str | None = None, dry_run: bool | None = None, **given: Any
) -> None:
    """Stage one: score the preferences under the frozen reference and seal a cache."""
    if shard is not None:
        raise InputError(f"--shard {shard}: this option is now called --share {shard}.")
    settings = build(PrecomputeConfig, load_file(config)["precompute"], given)
    console = TerminalConsole()
    if dry_run:
        run_dry(settings, console)
        return
    manifest = run_share(settings, console)
    if manifest is not None:
        console.table("", cache_rows(settings.cache, manifest))
        console.next("reflogp", "train", "--cache", str(settings.cache), "--output", "model")


@app.command(cls=Command)
@options_of(PlanConfig, json=AsJson)
def plan(config: Path | None = None, json: bool | None = None, **given: Any) -> None:
    """Estimate the time, cost, disk and memory of both stages, without loading any weights."""
    settings = build(PlanConfig, known_to(PlanConfig, load_file(config)), given)
    console = TerminalConsole()
    counts, found = run_plan(settings, console)
    if json:
        figures = {"counts": asdict(counts), "estimate": asdict(found)}
        console.json(dumps(figures, indent=2))
    else:
        console.table("", plan_rows(settings, counts, found))
        given_data = ("--reference", settings.reference, "--data", settings.data)
        console.next("reflogp", "precompute", *given_data, "--cache", "cache")


@app.command(cls=Command)
def doctor(
    engine: Annotated[
        Literal["auto", "vllm", "transformers"], typer.Option(help="Engine of stage one.")
    ] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try one architecture only, and time nothing.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write all that was found to this file, to send. It names "
            "no host, no user and no folder.",
        ),
    ] = None,
) -> None:
    """Check that reflogp works on this machine: what is installed, and the numbers of both stages.

    Makes tiny random models of four architectures, scores and trains them as the other commands do,
    and compares every number with plain float32 forward and backward passes. Then times some layers
    of a model of real size. Takes minutes, and downloads nothing. The exit code is 1 if
    something is off.
    """
    from reflogp.pipeline.doctor.run import run_doctor  # imports torch

    report = run_doctor(engine, TerminalConsole(), quick=quick, file=json)
    if any(check.result == "off" for check in report.checks):
        raise typer.Exit(1)


@app.command(cls=Command)
def merge(cache: Cache, trust_remote_code: Trust = False) -> None:
    """Seal a cache that several jobs made with --share. Refuses files that do not fit."""
    console = TerminalConsole()
    folder = location(cache)
    manifest = run_merge(folder, console, trusted=trust_remote_code)
    console.table("", cache_rows(folder, manifest))
    console.next("reflogp", "train", "--cache", str(folder), "--output", "model")


@app.command(cls=Command)
@options_of(TrainConfig, list_losses=ListLosses)
def train(config: Path | None = None, list_losses: bool | None = None, **given: Any) -> None:
    """Stage two: train the policy against a sealed cache."""
    console = TerminalConsole()
    if list_losses:
        title, rows = losses_table()
        console.table(title, rows, header=("loss", "formula, paper", "needs, arguments"))
        return
    settings = build(TrainConfig, of_training(load_file(config)), given)
    console.table("", train_rows(settings.output, run_train(settings, console)))
    console.next("reflogp", "report", str(settings.output))


@app.command(cls=Command)
@options_of(TrainConfig, varied=Varied)
def sweep(config: Path | None = None, varied: list[str] | None = None, **given: Any) -> None:
    """Run stage two for every combination of some options, each in its own folder under --output.

    Finished runs are not repeated. If a run fails, it is reported and the others continue; the exit
    code is then 1.
    """
    sections, console = load_file(config), TerminalConsole()
    section = of_training(sections)
    record = run_sweep(section, given, axes(sections["sweep"], varied or ()), console)
    console.table("", sweep_rows(record), header=header(record))
    console.say(MEANING)
    output = Path(given["output"] or section["output"])
    done = [str(output / run.folder) for run in record.runs if run.run is not None]
    if done:
        console.next("reflogp", "report", *done)
    if any(run.status == "failed" for run in record.runs):
        raise typer.Exit(1)


@app.command(cls=Command)
def run(
    config: Annotated[Path, typer.Option(help="YAML file with 'precompute' and 'train'.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.NAME=VALUE",
            help="An option in place of the file's: train.beta=0.2. Can be given several times.",
        ),
    ] = None,
) -> None:
    """Run both stages, each only if its inputs have changed."""
    sections = overridden(load_file(config), settings or ())
    first = build(PrecomputeConfig, sections["precompute"], {})
    # stage two starts from stage one's reference, unless the file says otherwise
    start: dict[str, Any] = {"policy": first.reference, "adapter": first.adapter}
    if "policy" in sections["train"] or first.revision is not None:
        start = {}  # the cache knows the commit of its reference
    if "policy" not in sections["train"]:
        start["trust_remote_code"] = first.trust_remote_code
    second = build(TrainConfig, {"cache": first.cache} | start | sections["train"], {})
    console = TerminalConsole()
    require_output_of_both(first, second)
    manifest = run_precompute(first, console)
    record = run_train(second, console)
    console.table("", cache_rows(first.cache, manifest) + train_rows(second.output, record))
    console.next("reflogp", "report", str(second.output))


@app.command("convert-config", cls=Command)
def convert_config(
    file: Annotated[Path, typer.Argument(help="YAML file of TRL, axolotl or LLaMA-Factory.")],
    processes: Annotated[
        int, typer.Option(min=1, help="Processes (GPUs) that the file was written for.")
    ] = 1,
) -> None:
    """Print another trainer's configuration as one of reflogp, for `reflogp run --config`.

    Keys that differ in meaning, that have no counterpart, or that the file leaves to a default are
    listed as comments.
    """
    typer.echo(as_yaml(*converted(read_yaml(file), processes)), nl=False)


app.add_typer(reading)


def main() -> None:
    """Run the command. Signals and expected errors become a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not support every character
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    console = TerminalConsole()
    try:
        with ending(console.say):
            sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        if text := error.format_message():  # empty if the help was printed instead
            command = error.ctx.command_path if error.ctx else "reflogp"
            if theirs := advice_on(getattr(error, "option_name", "")):
                text = f"{error.option_name}: {theirs}"
            console.error(f"{text} See `{command} --help`.")
        sys.exit(error.exit_code)
    except ReflogpError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a file where a folder should be, no permission
        console.error(
            f"{error.filename or 'a file'}: {error.strerror or error}. Check the path, its "
            "permissions and the free space, then run the same command again. Finished shards are "
            "kept."
        )
        sys.exit(1)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # pathlib raises no more specific error
            raise
        console.error(f"{error}: this link points back to itself. Check the path.")
        sys.exit(2)
