"""Loading a checkpoint: whatever its library raises on a bad one becomes one message."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_schemas.errors import InputError


@contextmanager
def loading(what: str, folder: Path) -> Iterator[None]:
    """Within, a failure to load `what` (weights, tokenizer, ...) from `folder` is the user's.

    Raises:
        InputError: instead of anything that the library raises.
    """
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{folder}: the {what} cannot be loaded: {reason}. Check that the checkpoint is whole."
        ) from error


def architecture(folder: Path) -> str | None:
    """The class that a checkpoint's config.json names for it, if it names one.

    Raises:
        InputError: there is no such file, or it is not valid JSON.
    """
    with loading("config.json", folder):
        config = json.loads((folder / "config.json").read_bytes())
        return next(iter(config.get("architectures") or []), None)
