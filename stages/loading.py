"""Loading a checkpoint: whatever its library raises on a bad one becomes one message."""

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
