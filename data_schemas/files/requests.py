"""Asking an object store, again and again for a while if it fails.

A minute of scoring is worth some patience. Absence is FileNotFoundError at once. What fails is
tried again, and then it is a StorageError, which no one takes for absence or damage.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from reflogp.data_schemas.errors import StorageError, StorageRefusedError

# A minute of scoring is worth some patience. A store that stalls takes the time of a last attempt
# (data_schemas/files/location.py) on top, so that the longest wait is about three minutes.
PATIENCE_SECONDS = 120.0


_LONGEST_PAUSE_SECONDS = 16.0


ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


_FINAL = (PermissionError, ValueError, NotImplementedError)


Result = TypeVar("Result")


def ask(path: Any, call: Callable[[Any, str], Result], patience: float | None = None) -> Result:
    """`call` a store with the name that `path` has there, while it fails and patience lasts."""
    fs = path.fs
    fs.retries = 1  # s3fs tries reads in two nested loops of five: 25 times its timeout
    end = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    pause = min(1.0, PATIENCE_SECONDS / 4)
    while True:
        try:
            return call(fs, path.path)
        except ABSENT:
            raise
        except Exception as error:
            # what is wrong with a name, an address or a key does not pass
            if isinstance(error, _FINAL) or "Credentials" in type(error).__name__:
                raise StorageRefusedError(
                    f"{path}: the storage cannot be used: {_text(error)}. Check its address, and "
                    "that the credentials may list, read, write and delete there."
                ) from error
            if time.monotonic() + pause > end:
                raise StorageError(
                    f"{path}: the storage failed: {_text(error)}. What is finished is kept; run "
                    "the command again when the storage answers."
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".: ")
