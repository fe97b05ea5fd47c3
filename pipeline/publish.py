"""Runs export, push and report: results for other programs and for people."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.export import ExportFormat
from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.owned_folder import require_owned
from reflogp.data_schemas.files.ownership import require_apart, require_output
from reflogp.data_schemas.files.storage import reach
from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.fingerprint import tokenizer_input
from reflogp.pipeline.resolve import described, resolve_start
from reflogp.stages.model.loading import limits_under
from reflogp.stages.progress import Console


def run_export(
    cache: Path,
    form: ExportFormat,
    output: Path,
    reference: str | None,
    console: Console,
    adapter: str | None = None,
    *,
    overwrite: bool = False,
    trusted: bool = False,
) -> list[Path]:
    """Write a sealed cache as a plain data set. Returns its files.

    Raises:
        InputError: the cache is damaged or not sealed; `output` is an input, or holds something
            that must not be replaced; or `reference` has another tokenizer than the cache.
    """
    _require_free(output, overwrite=overwrite)
    reach(cache)
    require_apart("--output", output, {"cache": cache})
    manifest = manifests.read(cache)
    model = resolve_start(reference, adapter, manifest, "reference", trusted=trusted)
    require_apart("--output", output, {"reference": model.folder, "adapter": model.adapter})
    if tokenizer_input(model) != manifest.inputs.tokenizer:
        raise InputError(
            f"--reference {model.folder}: its tokenizer is not the one that the cache was made "
            f"with, so the text would be wrong. Give {described(manifest)}."
        )
    from reflogp.stages.export.stage import export

    limits = limits_under(manifest, model.folder)
    with quiet_transformers():
        return export(cache, manifest, limits, form, model, output, console)


def _require_free(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that is not new, empty, or an export that can be replaced."""
    if not is_local(output):
        raise InputError(f"--output {output}: an export is written to disk. Give a folder.")
    if output.is_mount():
        raise InputError(
            f"--output {output}: this folder is a mount point, so it cannot be replaced as a "
            "whole. Give a folder inside it."
        )
    mark = require_output(output, "export", option="--output", overwrite=None)
    if mark is not None and not overwrite:
        raise InputError(
            f"--output {output}: the folder already holds an export. Give another folder, or "
            "--overwrite to replace it."
        )
    if mark is not None:
        require_owned("--output", output, mark)


def run_push(
    cache: Path,
    name: str,
    reference: str | None,
    console: Console,
    adapter: str | None = None,
    *,
    public: bool = False,
    trusted: bool = False,
) -> str:
    """Push a sealed cache to the Hub as the data set `name`. Returns its address.

    Raises:
        InputError: see `run_export`; or the user is not logged in, or has no write access.
        ReflogpError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    from reflogp.stages.export.hub import push, require_login

    api = HfApi()
    require_login(name, api)
    with tempfile.TemporaryDirectory(prefix="reflogp-") as folder:
        output = Path(folder) / "data_set"
        run_export(cache, "parquet", output, reference, console, adapter, trusted=trusted)
        console.say(f"uploading to {name}")
        return push(output, name, api, public=public)


def run_report(
    runs: Sequence[Path], output: Path | None, png: Path | None, svg: Path | None, console: Console
) -> list[Path]:
    """Write the page of these runs, and their charts to the folders `png` and `svg` if given.

    Returns:
        The files that were written, the page first.

    Raises:
        InputError: a folder holds no finished run, or a library is missing.
    """
    from reflogp.stages.report.stage import report

    if not runs and (png or svg):
        console.warn("--png and --svg have no effect: the explorer alone has no charts.")
        png = svg = None

    what = ", ".join(map(str, runs)) or "the explorer of the loss"
    console.say(f"report: {what}")
    return report(runs, output, png, svg)
