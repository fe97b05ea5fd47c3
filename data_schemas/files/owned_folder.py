"""A result that is a whole folder: filled beside its place, then put there in one step."""

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

_HERE = -100  # AT_FDCWD of renameat2(2): paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE


@contextmanager
def owned_folder(folder: Path, kind: Kind, files: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder on disk to fill; on success it takes the place of `folder`, whole.

    After an exception `folder` is what it was before. What a killed run left beside it is removed
    by the next run that ends well.

    Args:
        folder: it does not exist, is empty, or holds nothing but an own result (`require_owned`).
        kind: of the result.
        files: every file that will be written, relative to the folder, with forward slashes.

    Raises:
        OSError: the disk is full, fails or refuses.
    """
    folder = folder.resolve()
    new = folder.with_name(hidden(folder.name, "partial"))
    new.mkdir(parents=True)
    # A lock says that this run is alive: others leave the folder alone. It moves with the folder.
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
        _remove(new)  # after a switch the earlier result is here
    left = re.compile(rf"\.{re.escape(cut(folder.name))}\.[0-9a-f]{{12}}\.partial")
    for path in [path for path in folder.parent.iterdir() if left.fullmatch(path.name)]:
        _remove_if_dead(path, kind)


def require_owned(option: str, folder: Path, mark: Mark) -> None:
    """Refuse to replace a folder as a whole if anything in it is not reflogp's.

    Args:
        option: under which the folder was given, for messages.
        folder: on disk.
        mark: of the folder.

    Raises:
        InputError: it holds a file that the mark does not name, or a link.
    """
    known = {*mark.files, FILE_NAME}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (name not in known and not path.is_dir()):
            raise InputError(
                f"{option} {folder}: reflogp did not write {name} in there, so the folder cannot "
                "be replaced. Move that file, or give another folder."
            )


def _switch(new: Path, folder: Path) -> None:
    """Give `new` the name `folder`; what had that name gets the other one."""
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
    """Exchange two names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _remove_if_dead(partial: Path, kind: Kind) -> None:
    """Remove what a killed run left, if its mark says that reflogp wrote it."""
    if partial.is_symlink():
        return
    with suppress(OSError, InputError):
        mark = read_mark(partial)
        if mark is None:
            partial.rmdir()  # killed before it wrote the mark; a folder with files stays
            return
        if mark.kind != kind:
            return
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its run is alive
            _remove(partial)
        finally:
            os.close(lock)


def _remove(partial: Path) -> None:
    with suppress(OSError, InputError):
        mark = read_mark(partial)
        if mark is not None:
            remove_owned(partial, [*mark.files, FILE_NAME])
        partial.rmdir()
