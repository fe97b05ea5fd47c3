"""Atomic file writes: temporary name, fsync, rename, fsync. Readers never see a partial file.

Object stores have neither fsync nor rename. There the file is written to disk first and uploaded
in one put, which is atomic: the object appears once its last byte has arrived.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.storage import put

_LONGEST = 200  # bytes of a name; file systems allow 255


@contextmanager
def atomic_path(
    path: Path, keep: Callable[[], bool] | None = None, alias: str | None = None
) -> Iterator[Path]:
    """Yield a temporary path on disk, whose file replaces `path` durably on success.

    After an exception, the temporary file is removed and `path` is unchanged.

    Args:
        path: the file to write.
        keep: called if `path` already exists; the existing file stays if it returns True.
        alias: name for the temporary file, by default that of `path`.

    Raises:
        OSError: the disk is full, fails or denies access; the error names `path`.
        StorageError: `path` is in a store that fails.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            if keep is None or not keep():
                put(temporary, path, alias)
        return
    # Arrow reads c:d as a URL, but /home/me/c:d as a path.
    temporary = path.absolute().with_name(hidden(alias or path.name, "tmp"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        _publish(temporary, path, keep)
        # The folder stores the rename, and a power cut could undo it without this fsync.
        fsync(path.parent)
    except OSError as error:
        if error.errno is None or str(error.filename) not in {"None", str(temporary)}:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with suppress(OSError):  # a failed removal must not hide the first error
            temporary.unlink()


def hidden(name: str, ending: str) -> str:
    """Return a name for an unfinished file: `.name.0123456789ab.ending`, cut to a legal length.

    The name is random because two hosts can share the folder and a process id.
    """
    return f".{cut(name)}.{uuid.uuid4().hex[:12]}.{ending}"


def cut(name: str) -> str:
    """Cut a file's name so that there is room for what `hidden` adds."""
    return os.fsencode(name)[:_LONGEST].decode(errors="ignore")


def write_text(path: Path, text: str, alias: str | None = None) -> None:
    """Write `text` to `path` as UTF-8, atomically. `alias` is that of `atomic_path`."""
    with atomic_path(path, alias=alias) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _publish(temporary: Path, path: Path, keep: Callable[[], bool] | None) -> None:
    """Rename the file to `path`, unless `keep` accepts the one that is there already."""
    if keep is None:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, it never replaces another writer's file
    except OSError:  # the file exists, or this file system has no links
        if not keep():
            temporary.replace(path)


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk permanently."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
