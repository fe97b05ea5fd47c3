"""Results that are whole folders: filled under a temporary name, then moved in one step."""

import ctypes
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import cut, fsync, hidden
from reflogp.data_schemas.files.ownership import FILE_NAME, Kind, Mark, read_mark, remove_owned

_HERE = -100  # AT_FDCWD of renameat2(2): paths are relative to the current directory
_EXCHANGE = 2  # RENAME_EXCHANGE


@contextmanager
def owned_folder(folder: Path, kind: Kind, files: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder on disk to fill; on success, it replaces `folder` in one step.

    After an exception, `folder` is unchanged. The next successful run removes the temporary
    folders of killed runs.

    Args:
        folder: missing, empty, or with nothing but reflogp's own result (see `require_owned`).
        kind: kind of the result.
        files: every file that will be written, relative to the folder, with forward slashes.

    Raises:
        OSError: the disk is full, fails or denies access.
    """
    folder = folder.resolve()
    new = folder.with_name(hidden(folder.name, "partial"))
    new.mkdir(parents=True)
    # The lock tells other runs that this one is alive. It moves with the folder.
    lock = os.open(new, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (new / FILE_NAME).write_text(Mark(kind=kind, files=list(files)).model_dump_json(indent=2))
        yield new
        for path in new.rglob("*"):
            fsync(path)
        _switch(new, folder)
        fsync(folder.parent)
    finally:
        os.close(lock)
        _remove(new)  # after the switch, this is the earlier result
    left = re.compile(rf"\.{re.escape(cut(folder.name))}\.[0-9a-f]{{12}}\.partial")
    for path in [path for path in folder.parent.iterdir() if left.fullmatch(path.name)]:
        _remove_if_dead(path, kind)


def require_owned(option: str, folder: Path, mark: Mark) -> None:
    """Check that everything in a folder is reflogp's own, so that it can be replaced.

    Args:
        option: the option that named the folder, for messages.
        folder: a folder on disk.
        mark: the folder's mark.

    Raises:
        InputError: the folder has a link, or a file that the mark does not name.
    """
    known = {*mark.files, FILE_NAME}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (name not in known and not path.is_dir()):
            raise InputError(
                f"{option} {folder}: the folder cannot be replaced, because reflogp did not write "
                f"{name} in it. Move that file, or give another folder."
            )


def _switch(new: Path, folder: Path) -> None:
    """Swap the names of `new` and `folder`; `folder` can be missing or empty."""
    if not folder.exists() or not any(folder.iterdir()):
        new.replace(folder)
    elif not _exchange(new, folder):
        aside = folder.with_name(hidden(folder.name, "partial"))
        folder.rename(aside)
        try:
            new.rename(folder)
        except OSError:
            aside.rename(folder)
            raise
        aside.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _remove_if_dead(partial: Path, kind: Kind) -> None:
    """Remove the folder of a killed run, if its mark says that reflogp wrote it."""
    if partial.is_symlink():
        return
    with suppress(OSError, InputError):
        mark = read_mark(partial)
        if mark is None:
            partial.rmdir()  # killed before it wrote the mark; rmdir keeps a folder with files
            return
        if mark.kind != kind:
            return
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its run is alive
            _remove(partial)
        finally:
            os.close(lock)


def _remove(partial: Path) -> None:
    with suppress(OSError, InputError):
        mark = read_mark(partial)
        if mark is not None:
            remove_owned(partial, [*mark.files, FILE_NAME])
        partial.rmdir()
