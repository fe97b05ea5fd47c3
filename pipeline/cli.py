"""The command: parse, call, print, exit code."""

import sys
from dataclasses import asdict
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data_schemas import manifest as manifests
from data_schemas.errors import InputError, ReflogpError
from data_schemas.location import location, on_disk
from data_schemas.storage import reach
from pipeline.config import build, known_to, load_file
from pipeline.console import TerminalConsole
from pipeline.curate import run_diagnose, run_filter, run_filter_trial
from pipeline.export import run_export, run_push
from pipeline.findings import print_diagnosis
from pipeline.options import options_of
from pipeline.plan import plan_rows, run_plan
from pipeline.report import run_report
from pipeline.run import (
    require_output_of_both,
    run_integrity,
    run_merge,
    run_precompute,
    run_share,
    run_train,
    run_verify,
)
from pipeline.summary import (
    cache_rows,
    dropped_rows,
    filter_rows,
    inspect_rows,
    losses_table,
    train_rows,
    verify_rows,
)
from pipeline.sweep import axes, run_sweep
from pipeline.sweep_table import MEANING, header
from pipeline.sweep_table import rows as sweep_rows
from stages.filter.config import FilterRules
from stages.plan.config import PlanConfig
from stages.precompute.config import PrecomputeConfig
from stages.signals import ending
from stages.train.config import TrainConfig


def _path(text: str) -> Path:
    """A file or folder on disk, for Typer, which adds the option's name to what is wrong."""
    try:
        return on_disk(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


Cache = Annotated[str, typer.Argument(help="Folder or URL of a cache.")]
ListLosses = Annotated[
    bool | None, typer.Option("--list-losses", help="Print a table of the losses, and end.")
]
Png = Annotated[
    Path | None,
    typer.Option(metavar="PATH", parser=_path, help="Write the charts as PNG to this folder."),
]
Svg = Annotated[
    Path | None,
    typer.Option(metavar="PATH", parser=_path, help="Write the charts as SVG to this folder."),
]
AsJson = Annotated[bool | None, typer.Option("--json", help="Print the figures as JSON.")]
Output = Annotated[
    str | None, typer.Option("--output", help="Folder or URL of the cache to write.")
]
DryRun = Annotated[
    bool | None, typer.Option("--dry-run", help="Print what would go and how the rest would weigh.")
]
Overwrite = Annotated[
    bool | None,
    typer.Option(
        "--overwrite",
        help="Replace a filtered cache that cannot be read, or a result of another kind, which "
        "reflogp wrote there. Never a cache that was scored.",
    ),
]

Varied = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE,...", help="A setting of stage two with the values to try; "
        "more than one --set: every combination. A value with commas stands in a list: "
        "--set 'loss=[dpo, \"dpo=1,sft=0.2\"]'. In YAML: a section 'sweep', each key with a list.",
    ),
]  # fmt: skip

# Of what Typer raises for a command line that it cannot read.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="reflogp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Take the frozen reference model out of DPO training. Stage one (precompute) scores every "
    "chosen and rejected response under the reference once and caches the log-probs; stage two "
    "(train) trains the policy against the cache, without the reference in memory.",
    epilog="Every option can also stand in a YAML file with the sections 'precompute', 'train' and "
    "'sweep': reflogp run --config run.yaml. Exit codes: 0 done, 1 failed, 2 bad input.",
)


@app.command()
@options_of(PrecomputeConfig)
def precompute(config: Path | None = None, **given: Any) -> None:
    """Stage one: score the preferences under the frozen reference and seal a cache."""
    settings = build(PrecomputeConfig, load_file(config)["precompute"], given)
    console = TerminalConsole()
    manifest = run_share(settings, console)
    if manifest is not None:
        console.table("", cache_rows(settings.cache, manifest))


@app.command()
@options_of(PlanConfig, json=AsJson)
def plan(config: Path | None = None, json: bool | None = None, **given: Any) -> None:
    """What would both stages take? Hours, cost, disk and memory, before any weight is loaded."""
    settings = build(PlanConfig, known_to(PlanConfig, load_file(config)), given)
    console = TerminalConsole()
    counts, found = run_plan(settings, console)
    if json:
        figures = {"counts": asdict(counts), "estimate": asdict(found)}
        console.json(dumps(figures, indent=2))
    else:
        console.table("", plan_rows(settings, counts, found))


@app.command()
def merge(cache: Cache) -> None:
    """Seal a cache that several jobs made, each with its --shard; refuses what does not fit."""
    console = TerminalConsole()
    folder = location(cache)
    console.table("", cache_rows(folder, run_merge(folder, console)))


@app.command()
@options_of(TrainConfig, list_losses=ListLosses)
def train(config: Path | None = None, list_losses: bool | None = None, **given: Any) -> None:
    """Stage two: train the policy against a sealed cache."""
    console = TerminalConsole()
    if list_losses:
        title, rows = losses_table()
        console.table(title, rows, header=("loss", "formula, paper", "needs, arguments"))
        return
    settings = build(TrainConfig, load_file(config)["train"], given)
    console.table("", train_rows(settings.output, run_train(settings, console)))


@app.command()
@options_of(TrainConfig, varied=Varied)
def sweep(config: Path | None = None, varied: list[str] | None = None, **given: Any) -> None:
    """Stage two for every combination of some settings, each in a folder of its own under --output.

    Finished runs are not run again; a run that fails is told of, and the others go on. Exit code 1
    if one failed.
    """
    sections = load_file(config)
    console = TerminalConsole()
    record = run_sweep(sections["train"], given, axes(sections["sweep"], varied or ()), console)
    console.table("", sweep_rows(record), header=header(record))
    console.say(MEANING)
    if any(run.status == "failed" for run in record.runs):
        raise typer.Exit(1)


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="YAML file with 'precompute' and 'train'.")],
) -> None:
    """Both stages, each only if its inputs changed."""
    sections = load_file(config)
    first = build(PrecomputeConfig, sections["precompute"], {})
    # Stage two takes up where stage one leaves off, unless the file says otherwise.
    start = {"policy": first.reference, "adapter": first.adapter}
    if "policy" in sections["train"] or first.revision is not None:
        start = {}  # the cache says at which commit its reference was read
    second = build(TrainConfig, {"cache": first.cache} | start | sections["train"], {})
    console = TerminalConsole()
    require_output_of_both(first, second)
    manifest = run_precompute(first, console)
    record = run_train(second, console)
    console.table("", cache_rows(first.cache, manifest) + train_rows(second.output, record))


@app.command()
def inspect(
    cache: Cache,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Where a cache comes from and what is in it: rows, tokens, fingerprints, jobs, machines."""
    folder = location(cache)
    reach(folder)
    manifest = manifests.read(folder)
    console = TerminalConsole()
    if json:
        console.json(manifest.model_dump_json(indent=2))
    else:
        console.table("", inspect_rows(folder, manifest))


@app.command()
def verify(
    cache: Cache,
    sample: Annotated[
        int, typer.Option(min=0, help="How many random rows to rescore; 0 needs no model.")
    ] = 0,
    reference: Annotated[
        str | None, typer.Option(help="The checkpoint, if it is no longer where it was.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="The LoRA adapter on top, likewise.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Is a cache whole, every bit of it? With --sample also: are its numbers the reference's?

    Checks checksums, schema, counts, ids, lengths and values of every file. --sample N rescores N
    rows in float32 and as training does. Exit code 2 if the cache is damaged, 1 if its numbers are
    not the reference's.
    """
    if not sample and (reference is not None or adapter is not None or seed):
        raise InputError("--reference, --adapter and --seed are of no use without --sample.")
    console, folder = TerminalConsole(), location(cache)
    damage = run_integrity(folder, console)
    for problem in damage:
        console.error(problem)
    rescored = None
    if sample and not damage:
        rescored = run_verify(folder, sample, reference, seed, console, adapter)
    if json:
        found = None if rescored is None else rescored.model_dump()
        console.json(dumps({"whole": not damage, "damage": damage, "rescored": found}, indent=2))
    else:
        console.table("", verify_rows(damage, rescored))
    if damage:
        raise typer.Exit(2)
    if rescored is not None and not rescored.passed:
        raise typer.Exit(1)


@app.command()
def diagnose(
    cache: Cache,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=_path,
            help="Write a page to this file, with charts and rows to look at.",
        ),
    ] = None,
    png: Png = None,
    svg: Svg = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Can these preferences teach anything? Ask before you spend the compute.

    Length bias, near-identical pairs, duplicates, contradictions, outliers, what the reference
    knows already; each with what to do. Reads the cache once and needs no model.
    """
    console = TerminalConsole()
    found = run_diagnose(location(cache), html, console, png, svg)
    if json:
        console.json(found.model_dump_json(indent=2))
    else:
        print_diagnosis(found, console)


@app.command("filter")
@options_of(
    FilterRules, config_file=False, cache=Cache, output=Output, dry_run=DryRun, overwrite=Overwrite
)
def filter_(
    cache: str, output: str | None, dry_run: bool | None, overwrite: bool | None, **given: Any
) -> None:
    """Drop or weight rows of a sealed cache; what is left is one, too. Nothing is scored.

    A row goes by the first rule that it breaks, in the order of the options. The rows that went
    stand in the quarantine of the new cache, each with its reason. With --weight-by, training
    multiplies the loss of each row that stays by its weight; their mean is 1.
    """
    rules, console, folder = build(FilterRules, {}, given), TerminalConsole(), location(cache)
    if dry_run:
        total, found = run_filter_trial(folder, rules, console)
        weights = found.weighted.summary if found.weighted else None
        console.table("", dropped_rows(total, found.dropped, weights))
        return
    if output is None:
        raise InputError("--output is required, but for --dry-run: the folder of the new cache.")
    target = location(output)
    manifest = run_filter(folder, target, rules, console, overwrite=bool(overwrite))
    made = filter_rows(manifest.filtered) if manifest.filtered else []
    console.table("", cache_rows(target, manifest) + made)


@app.command()
def export(
    cache: Cache,
    output: Annotated[
        str, typer.Option(help="Folder to write; with --format hub the data set, owner/name.")
    ],
    format: Annotated[  # noqa: A002
        Literal["parquet", "trl", "hub"],
        typer.Option(
            help="parquet: all that the cache has, and text. trl: the columns of TRL's own "
            "precompute. hub: parquet, pushed to the Hugging Face hub."
        ),
    ] = "parquet",
    reference: Annotated[
        str | None, typer.Option(help="The checkpoint, for its tokenizer, if it is elsewhere now.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="The LoRA adapter on top, likewise.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="With --format hub: make a data set that all can see.")
    ] = False,
) -> None:
    """Write a sealed cache as a plain data set, for TRL, pandas, datasets; docs/trl.md."""
    console, folder = TerminalConsole(), location(cache)
    if public and format != "hub":
        raise InputError(f"--public is for --format hub; --format {format} writes a folder.")
    if format == "hub":
        address = run_push(folder, output, reference, console, adapter, public=public)
        console.table("", [("data set", address)])
    else:
        target = on_disk(output)
        files = run_export(folder, format, target, reference, console, adapter, overwrite=overwrite)
        console.table("", [("data set", output), ("files", f"{len(files)} Parquet, README.md")])


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", parser=_path, help="Folders of finished runs."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=_path,
            help="The page. Default: report.html in the run's folder; of several runs, here.",
        ),
    ] = None,
    png: Png = None,
    svg: Svg = None,
    explorer_only: Annotated[
        bool, typer.Option("--explorer-only", help="Only the explorer of the loss.")
    ] = False,
) -> None:
    """What training did, as one HTML page: curves, pairs token by token, the loss to play with.

    Several runs stand side by side. Without a run the page holds the explorer of the loss alone.
    """
    if explorer_only and runs:
        raise InputError(f"--explorer-only: the page is of no run. Leave out {runs[0]}.")
    folders = runs or []
    console = TerminalConsole()
    for path in run_report(folders, output, png, svg, console):
        console.text(str(path))


def main() -> None:
    """Run the command; turn signals and what a user can meet into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal need not know every letter of a name
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    console = TerminalConsole()
    try:
        with ending(console.say):
            sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        if text := error.format_message():  # none where the help was shown instead
            command = error.ctx.command_path if error.ctx else "reflogp"
            console.error(f"{text} See `{command} --help`.")
        sys.exit(error.exit_code)
    except ReflogpError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a disk that is full, a file where a folder should be, no permission
        console.error(
            f"{error.filename or 'a file'}: {error.strerror or error}. Check the path, its "
            "permissions and the space left, then run the same command again; finished shards "
            "are kept."
        )
        sys.exit(1)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # all that pathlib says of it
            raise
        console.error(f"{error}: this link leads back to itself. Check the path.")
        sys.exit(2)
