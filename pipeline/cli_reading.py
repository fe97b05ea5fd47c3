"""The commands that read a cache or a finished run."""

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
from reflogp.pipeline.help import Command
from reflogp.pipeline.look import ROWS, show_quarantined, show_rows
from reflogp.pipeline.publish import run_export, run_push, run_report
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
    """Parse a path on disk for Typer, which adds the option's name to the error."""
    try:
        return on_disk(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


Cache = Annotated[str, typer.Argument(help="Folder or URL of a cache.")]
AsJson = Annotated[bool | None, typer.Option("--json", help="Print the figures as JSON.")]
Adapter = Annotated[str | None, typer.Option(help="The LoRA adapter on top, if it has moved.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code from the checkpoint's folder.")
]
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
    bool | None, typer.Option("--dry-run", help="Only print what would be dropped and the weights.")
]
Overwrite = Annotated[
    bool | None,
    typer.Option(
        "--overwrite",
        help="Replace a filtered cache that cannot be read, or a result of another kind, if "
        "reflogp wrote it. A scored cache is never replaced.",
    ),
]

reading = typer.Typer(rich_markup_mode=None)


@reading.command(cls=Command)
def inspect(
    cache: Cache,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            metavar="N",
            min=1,
            help="Show the first N rows as the tokens they became, long ones shortened: prompt, "
            "chosen and rejected in colours, context in brackets. With --quarantine: N rows of "
            f"each reason (default {ROWS}).",
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            metavar="ID|NUMBER",
            help="Show one row in full, by its id or by its number in the source, from 0. Can be "
            "given several times.",
        ),
    ] = None,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine",
            help="Show the rows that could not be used, with reason, file, line and text. Also of "
            "a cache that is not sealed yet.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show the origin and content of a cache: rows, tokens, fingerprints, jobs, machines.

    With --rows or --row, show rows as tokens; with --quarantine, the rows that could not be used.
    """
    asked = {"--row": bool(row), "--rows": rows, "--quarantine": quarantine, "--json": json}
    given = [option for option, value in asked.items() if value]
    if len(given) > 1 and given != ["--rows", "--quarantine"]:
        raise InputError(f"{' and '.join(given)} show different things. Give one of them.")
    console, folder = TerminalConsole(), location(cache)
    reach(folder)
    if quarantine:
        show_quarantined(folder, rows or ROWS, console)
        return
    manifest = manifests.read(folder)
    if rows or row:
        show_rows(folder, manifest, rows or 0, row or [], console)
    elif json:
        console.json(manifest.model_dump_json(indent=2))
    else:
        console.table("", inspect_rows(folder, manifest))


@reading.command(cls=Command)
def verify(
    cache: Cache,
    sample: Annotated[
        int, typer.Option(min=0, help="Number of random rows to rescore; 0 needs no model.")
    ] = 0,
    reference: Annotated[str | None, typer.Option(help="The checkpoint, if it has moved.")] = None,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    trust_remote_code: Trust = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check that a cache is complete and undamaged. With --sample, also check its log-probs.

    Checks the checksums, schema, counts, ids, lengths and values of every file. --sample N rescores
    N rows under the reference, in float32 and as training does. The exit code is 2 if the cache is
    damaged, and 1 if its log-probs are not the reference's.
    """
    if not sample and (reference is not None or adapter is not None or seed):
        raise InputError("--reference, --adapter and --seed have no effect without --sample.")
    console, folder = TerminalConsole(), location(cache)
    damage = run_integrity(folder, console)
    for problem in damage:
        console.error(problem)
    rescored = None
    if sample and not damage:
        rescored = run_verify(
            folder, sample, reference, seed, console, adapter, trusted=trust_remote_code
        )
    if json:
        found = None if rescored is None else rescored.model_dump()
        console.json(dumps({"whole": not damage, "damage": damage, "rescored": found}, indent=2))
    else:
        console.table("", verify_rows(damage, rescored))
    if damage:
        raise typer.Exit(2)
    if rescored is not None and not rescored.passed:
        raise typer.Exit(1)


@reading.command(cls=Command)
def diagnose(
    cache: Cache,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=_path,
            help="Write an HTML page with charts and example rows to this file.",
        ),
    ] = None,
    png: Png = None,
    svg: Svg = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Report problems of the preferences, before you spend compute on them.

    Finds length bias, near-identical pairs, duplicates, contradictions, outliers, and pairs that
    the reference already orders correctly, each with advice. Reads the cache once and needs no
    model.
    """
    console = TerminalConsole()
    found = run_diagnose(location(cache), html, console, png, svg)
    if json:
        console.json(found.model_dump_json(indent=2))
    else:
        print_diagnosis(found, console)


@reading.command("filter", cls=Command)
@options_of(
    FilterRules, config_file=False, cache=Cache, output=Output, dry_run=DryRun, overwrite=Overwrite
)
def filter_(
    cache: str, output: str | None, dry_run: bool | None, overwrite: bool | None, **given: Any
) -> None:
    """Drop or weight rows of a sealed cache, and seal the rest as a new cache, without scoring.

    A row is dropped by the first rule that it breaks, in the order of the options. The quarantine
    of the new cache lists dropped rows with their reasons. With --weight-by, training multiplies
    the loss of each remaining row by its weight; the mean of the weights is 1.
    """
    rules, console, folder = build(FilterRules, {}, given), TerminalConsole(), location(cache)
    if dry_run:
        total, found = run_filter_trial(folder, rules, console)
        weights = found.weighted.summary if found.weighted else None
        console.table("", dropped_rows(total, found.dropped, weights))
        return
    if output is None:
        raise InputError("--output is required without --dry-run: the folder of the new cache.")
    target = location(output)
    manifest = run_filter(folder, target, rules, console, overwrite=bool(overwrite))
    made = filter_rows(manifest.filtered) if manifest.filtered else []
    console.table("", cache_rows(target, manifest) + made)
    console.next("reflogp", "train", "--cache", str(target), "--output", "model")


@reading.command(cls=Command)
def export(
    cache: Cache,
    output: Annotated[
        str, typer.Option(help="Folder to write; with --format hub, the data set (owner/name).")
    ],
    format: Annotated[  # noqa: A002
        Literal["parquet", "trl", "hub"],
        typer.Option(
            help="parquet: all columns of the cache, and the text. trl: the columns of TRL's own "
            "precompute. hub: parquet, pushed to the Hugging Face Hub."
        ),
    ] = "parquet",
    reference: Annotated[
        str | None, typer.Option(help="The checkpoint, for its tokenizer, if it has moved.")
    ] = None,
    adapter: Adapter = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="With --format hub: make the data set public.")
    ] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write a sealed cache as a plain data set for TRL, pandas or datasets; see docs/trl.md."""
    console, folder = TerminalConsole(), location(cache)
    if public and format != "hub":
        raise InputError(
            f"--public is only for --format hub; --format {format} writes a folder. Leave it out."
        )
    if format == "hub":
        address = run_push(
            folder, output, reference, console, adapter, public=public, trusted=trust_remote_code
        )
        console.table("", [("data set", address)])
    else:
        files = run_export(
            folder, format, on_disk(output), reference, console, adapter, overwrite=overwrite,
            trusted=trust_remote_code,
        )  # fmt: skip
        console.table("", [("data set", output), ("files", f"{len(files)} Parquet, README.md")])


@reading.command(cls=Command)
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
            help="The page to write. Default: report.html in the run's folder, or in the working "
            "directory for several runs.",
        ),
    ] = None,
    png: Png = None,
    svg: Svg = None,
    explorer_only: Annotated[
        bool, typer.Option("--explorer-only", help="Write only the explorer of the loss.")
    ] = False,
) -> None:
    """Show what training did, as an HTML page: curves, pairs token by token, a loss explorer.

    Several runs are shown side by side. Without a run, the page has only the loss explorer.
    """
    if explorer_only and runs:
        raise InputError(f"--explorer-only: the page shows no run. Leave out {runs[0]}.")
    folders = runs or []
    console = TerminalConsole()
    for path in run_report(folders, output, png, svg, console):
        console.text(str(path))
