"""Loading a checkpoint: whatever its library raises on a bad one becomes one message."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_schemas.errors import InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")


@contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Within, a failure to load `what` (weights, tokenizer, ...) from `path` is the user's.

    Raises:
        InputError: instead of anything that the library raises.
    """
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{path}: the {what} cannot be loaded: {reason}. Check that the checkpoint is whole."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint; empty where there is none.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("not an object with named fields")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON: {error}. Check that the checkpoint is whole."
        ) from error
    return content


def quantization(checkpoint: Path) -> str | None:
    """How the weights of a checkpoint are quantised (fp8, awq, gptq, ...); None if they are not."""
    config = read_json(checkpoint / "config.json")
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"


def hub_commit(folder: Path | None) -> str | None:
    """The commit of a folder in the hub's cache, as that names it; None of any other folder."""
    found = folder is not None and folder.parent.name == "snapshots"
    return folder.name if folder and found and _COMMIT.fullmatch(folder.name) else None


def architecture(folder: Path) -> str | None:
    """The class that a checkpoint's config.json names for it, if it names one.

    Raises:
        InputError: there is no such file, or it is not valid JSON.
    """
    with loading("config.json", folder):
        config = json.loads((folder / "config.json").read_bytes())
        return next(iter(config.get("architectures") or []), None)
