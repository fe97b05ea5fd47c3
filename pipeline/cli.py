"""The command: parse, call, print, exit code."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from data_schemas import manifest as manifests
from data_schemas.errors import ReflogpError
from pipeline.config import build, load_file
from pipeline.console import TerminalConsole
from pipeline.options import options_of
from pipeline.run import run_precompute, run_train, run_verify
from pipeline.summary import cache_rows, inspect_rows, train_rows, verify_rows
from stages.precompute.config import PrecomputeConfig
from stages.train.config import TrainConfig

app = typer.Typer(
    name="reflogp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Take the frozen reference model out of DPO training. Stage one (precompute) scores every "
    "chosen and rejected response under the reference once and caches the log-probs; stage two "
    "(train) trains the policy against the cache, without the reference in memory.",
    epilog="Every option can also stand in a YAML file with the sections 'precompute' and 'train': "
    "reflogp run --config run.yaml. Exit codes: 0 done, 1 failed, 2 bad input.",
)


@app.command()
@options_of(PrecomputeConfig)
def precompute(config: Path | None = None, **given: Any) -> None:
    """Stage one: score the preferences under the frozen reference and seal a cache."""
    settings = build(PrecomputeConfig, load_file(config)["precompute"], given)
    console = TerminalConsole()
    console.table("", cache_rows(settings.cache, run_precompute(settings, console)))


@app.command()
@options_of(TrainConfig)
def train(config: Path | None = None, **given: Any) -> None:
    """Stage two: train the policy against a sealed cache."""
    settings = build(TrainConfig, load_file(config)["train"], given)
    console = TerminalConsole()
    console.table("", train_rows(settings.output, run_train(settings, console)))


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="YAML file with 'precompute' and 'train'.")],
) -> None:
    """Both stages, each only if its inputs changed."""
    sections = load_file(config)
    first = build(PrecomputeConfig, sections["precompute"], {})
    # Stage two takes up where stage one leaves off, unless the file says otherwise.
    second = build(
        TrainConfig, {"cache": first.cache, "policy": first.reference} | sections["train"], {}
    )
    console = TerminalConsole()
    manifest = run_precompute(first, console)
    record = run_train(second, console)
    console.table("", cache_rows(first.cache, manifest) + train_rows(second.output, record))


@app.command()
def inspect(
    cache: Annotated[Path, typer.Argument(help="Folder of a sealed cache.")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """What is in a cache: rows, tokens, fingerprints, rows set aside by reason."""
    manifest = manifests.read(cache)
    console = TerminalConsole()
    if json:
        console.text(manifest.model_dump_json(indent=2))
    else:
        console.table("", inspect_rows(cache, manifest))


@app.command()
def verify(
    cache: Annotated[Path, typer.Argument(help="Folder of a sealed cache.")],
    sample: Annotated[int, typer.Option(min=1, help="How many random rows to rescore.")] = 64,
    reference: Annotated[
        str | None, typer.Option(help="The checkpoint, if it is no longer where it was.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Rescore a sample of a cache in float32 and as training does; exit code 1 if it disagrees."""
    console = TerminalConsole()
    found = run_verify(cache, sample, reference, seed, console)
    if json:
        console.text(found.model_dump_json(indent=2))
    else:
        console.table("", verify_rows(found))
    if not found.passed:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; turn the errors that a user can meet into a message and an exit code."""
    try:
        app()
    except ReflogpError as error:
        TerminalConsole().error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a disk that is full, a file where a folder should be, no permission
        TerminalConsole().error(
            f"{error.filename or 'a file'}: {error.strerror or error}. Check the "
            "path, its permissions and the space left."
        )
        sys.exit(1)
