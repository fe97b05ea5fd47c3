"""Writing files so that a reader never sees half of one: temporary name, fsync, rename, fsync.

An object store has neither fsync nor rename; there a file is made on disk and put whole, which is
atomic: the object appears when its last byte is there.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_schemas.location import is_local

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
_PUT_ATTEMPTS = 4  # with 1, 2 and 4 seconds between; the store's library tries each several times


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path on disk; on success its file becomes `path`, whole and durable.

    After an exception the temporary file is removed and `path` is what it was before.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            _put(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two hosts may share the folder, and a process id: so the name is unique by itself.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        # The rename itself lives in the folder: without this a power cut could undo it.
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_temporary(name: str) -> bool:
    """Whether a file of this name was left behind by a writer that was killed."""
    return name.startswith(".") and name.endswith(".tmp")


def _put(file: Path, target: Any) -> None:
    """Copy `file` to the object `target`; a minute of scoring is worth some patience."""
    for attempt in range(_PUT_ATTEMPTS):
        try:
            if target.protocol in _OBJECT_STORES:
                target.fs.put_file(str(file), target.path)
            else:  # hdfs, sftp and the like show a file while it grows, but can rename
                target.parent.mkdir(parents=True, exist_ok=True)
                growing = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
                target.fs.put_file(str(file), growing.path)
                target.fs.mv(growing.path, target.path)
        except Exception:
            if attempt == _PUT_ATTEMPTS - 1:
                raise
            time.sleep(2**attempt)
        else:
            return


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
