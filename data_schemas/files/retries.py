"""Requests to an object store, with retries.

A missing object raises FileNotFoundError at once. Other failures are retried for two minutes, then
raise StorageError, which no caller mistakes for absence or damage.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from reflogp.data_schemas.errors import StorageError, StorageRefusedError

# Losing a minute of scoring costs more than waiting. A store that stalls adds the timeout of a last
# attempt (data_schemas/files/location.py), so the longest wait is about three minutes.
PATIENCE_SECONDS = 120.0
_LONGEST_PAUSE_SECONDS = 16.0
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_FINAL = (PermissionError, ValueError, NotImplementedError)
Result = TypeVar("Result")


def ask(path: Any, call: Callable[[Any, str], Result], patience: float | None = None) -> Result:
    """Call `call(fs, name)` for `path` until it succeeds or `patience` seconds have passed.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: there is no such file.
        StorageRefusedError: the store denies access, or the name or address is invalid.
        StorageError: the store still fails after the last attempt.
    """
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
            # an invalid name, address or key stays invalid
            if isinstance(error, _FINAL) or "Credentials" in type(error).__name__:
                raise StorageRefusedError(
                    f"{path}: the storage cannot be used: {_text(error)}. Check its address, and "
                    "that the credentials permit listing, reading, writing and deleting."
                ) from error
            if time.monotonic() + pause > end:
                raise StorageError(
                    f"{path}: the storage failed: {_text(error)}. Finished work is kept; run the "
                    "command again when the storage answers."
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".: ")
