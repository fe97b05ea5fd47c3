"""Writing files so that a reader never sees half of one: temporary name, fsync, rename, fsync.

An object store has neither fsync nor rename; there a file is made on disk and put whole, which is
atomic: the object appears when its last byte is there.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.storage import put

_LONGEST = 200  # bytes of a name; disks take 255


@contextmanager
def atomic_path(
    path: Path, keep: Callable[[], bool] | None = None, alias: str | None = None
) -> Iterator[Path]:
    """Yield a temporary path on disk; on success its file becomes `path`, whole and durable.

    After an exception the temporary file is removed and `path` is what it was before.

    Args:
        path: the file to write.
        keep: asked when a file stands at `path` already; where it says True, that one stays.
        alias: names the temporary file, instead of the name of `path`.

    Raises:
        OSError: the disk is full, fails or refuses; it names `path`.
        StorageError: `path` is in a store that fails.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            if keep is None or not keep():
                put(temporary, path, alias)
        return
    # Arrow takes c:d for a URL, and /home/me/c:d for a path.
    temporary = path.absolute().with_name(hidden(alias or path.name, "tmp"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        _publish(temporary, path, keep)
        # The rename itself lives in the folder: without this a power cut could undo it.
        fsync(path.parent)
    except OSError as error:
        if error.errno is None or str(error.filename) not in {"None", str(temporary)}:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with suppress(OSError):  # what cannot be removed must not hide why
            temporary.unlink()


def hidden(name: str, ending: str) -> str:
    """A name for what is not whole yet: `.name.0123456789ab.ending`, cut to what a disk takes.

    Two hosts may share the folder, and a process id: so the name is unique by itself.
    """
    return f".{cut(name)}.{uuid.uuid4().hex[:12]}.{ending}"


def cut(name: str) -> str:
    """A file's name, with room for what `hidden` adds to it."""
    return os.fsencode(name)[:_LONGEST].decode(errors="ignore")


def write_text(path: Path, text: str, alias: str | None = None) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all; `alias` as in atomic_path."""
    with atomic_path(path, alias=alias) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _publish(temporary: Path, path: Path, keep: Callable[[], bool] | None) -> None:
    """Give the file its name; one that another writer put there meanwhile stays if it may."""
    if keep is None:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename it never replaces, however close the race
    except OSError:  # there is one, or this file system has no links
        if not keep():
            temporary.replace(path)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
