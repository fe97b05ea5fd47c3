"""The commands that read what the stages made: a cache or a finished run."""

from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.location import location, on_disk
from reflogp.data_schemas.files.storage import reach
from reflogp.pipeline.config import build, options_of
from reflogp.pipeline.console import TerminalConsole
from reflogp.pipeline.curate import run_diagnose, run_filter, run_filter_trial
from reflogp.pipeline.export import run_export, run_push, run_report
from reflogp.pipeline.run import (
    run_integrity,
    run_verify,
)
from reflogp.pipeline.summary import (
    cache_rows,
    dropped_rows,
    filter_rows,
    inspect_rows,
    print_diagnosis,
    verify_rows,
)
from reflogp.stages.filter.config import FilterRules


def _path(text: str) -> Path:
    """A file or folder on disk, for Typer, which adds the option's name to what is wrong."""
    try:
        return on_disk(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


Cache = Annotated[str, typer.Argument(help="Folder or URL of a cache.")]
AsJson = Annotated[bool | None, typer.Option("--json", help="Print the figures as JSON.")]
Png = Annotated[
    Path | None,
    typer.Option(metavar="PATH", parser=_path, help="Write the charts as PNG to this folder."),
]
Svg = Annotated[
    Path | None,
    typer.Option(metavar="PATH", parser=_path, help="Write the charts as SVG to this folder."),
]
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

reading = typer.Typer()


@reading.command()
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


@reading.command()
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


@reading.command()
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


@reading.command("filter")
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


@reading.command()
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


@reading.command()
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
