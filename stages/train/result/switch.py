"""A new result takes the place of an old one: by renames, in an order that a kill cannot spoil.

No single rename can do it, since OUTPUT holds other people's files, and may be a mount point. So:

1. The mark of the unfinished folder lists its files. From then on the new result is whole there.
2. The mark of OUTPUT names the old and the new files.
3. What makes the old model load (its configuration) goes, then the rest of it.
4. The new files come, each by a rename, their configuration last. They are links to those in the
   unfinished folder, so that the new result is whole in there all the while.
5. The mark of OUTPUT names the new files alone, and the unfinished folder goes.

After a kill the next command with the same output starts again at 2. OUTPUT never holds a model
that loads and is not one of the two.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reflogp.data_schemas import run_record
from reflogp.data_schemas.errors import ReflogpError
from reflogp.data_schemas.files.ownership import Mark, read_mark, remove_owned, shown, write_mark
from reflogp.stages.train.result.unfinished import (
    METRICS,
    alone,
    discard,
    unfinished_folders,
    written,
)

# without these nothing loads, and no run is done
_HEADS = ("adapter_config.json", "config.json", run_record.FILE_NAME)
_PLACING = ".placing.tmp"


def commit(folder: Path, result: Path, checkpoints: Collection[str]) -> None:
    """Declare the new result whole, once all of it is on the disk.

    Args:
        folder: the unfinished folder.
        result: in it, the model with its card and record.
        checkpoints: names of those in `folder` that are kept beside it.

    Raises:
        ReflogpError: a file of weights cannot be read back.
    """
    kept = {"runs", METRICS, result.name, *checkpoints}
    every = [path for path in result.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in every}
    names |= {name for name in written(folder) if name.partition("/")[0] in kept}
    for name in names:
        if name.endswith(".safetensors"):
            _require_readable(folder / name)
    sync(folder, names)
    write_mark(folder, Mark(kind="run", files=sorted(names)))


def switch(output: Path, folder: Path) -> None:
    """Put the whole result in `folder` in the place of what reflogp wrote in `output` before.

    Raises:
        ReflogpError: somebody else's file has a name that the result needs.
    """
    mark = read_mark(output)
    old = set(mark.files) if mark is not None else set()
    new = {re.sub(r"^result-\w+/", "", name): folder / name for name in _result(folder)}
    if taken := [name for name in sorted(new) if not _is_free(output, name, name in old)]:
        raise ReflogpError(
            f"--output {output}: the new result is whole in {folder}, but reflogp did not write "
            f"{shown(taken)}, which stands in its place. Move it away and run the same command "
            "again: nothing is trained twice."
        )
    write_mark(output, Mark(kind="run", files=sorted(old | new.keys())))
    leaving = [name for name in old if name not in new] + [
        name for name in _HEADS if name in old and name in new and not _is_placed(output, name, new)
    ]
    leaving = [name for name in leaving if not (output / name).is_dir()]  # not of our making
    heads = [name for name in leaving if name in _HEADS]
    remove_owned(output, heads)
    sync(output)
    remove_owned(output, [name for name in leaving if name not in heads])
    for names in (sorted(new.keys() - set(_HEADS)), [name for name in _HEADS if name in new]):
        for name in names:
            if not _is_placed(output, name, new):
                _place(new[name], output / name, folder / _PLACING)
        sync(output, names)
    write_mark(output, Mark(kind="run", files=sorted(new)))
    for done in unfinished_folders(output):
        discard(done)


def ready(output: Path) -> Path | None:
    """The unfinished folder whose result is whole and not yet in its place, if there is one."""
    return next((folder for folder in unfinished_folders(output) if _result(folder)), None)


def finish(output: Path) -> None:
    """Put a result in its place whose run was killed before it could do so, or while it did.

    Raises:
        ReflogpError: as `switch`; or another command is training into `output`.
    """
    with alone(output):
        if (folder := ready(output)) is not None:
            switch(output, folder)


def sync(folder: Path, names: Iterable[str] = ()) -> None:
    """Bring files in `folder`, and the entries of their folders, to the disk."""
    paths = {folder / name for name in names}
    paths |= {path.parent for path in paths} | {folder}
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _result(folder: Path) -> list[str]:
    """The files of the whole result in an unfinished folder; none while it is not whole."""
    mark = read_mark(folder)
    return mark.files if mark is not None else []


def _is_free(output: Path, name: str, own: bool) -> bool:
    path = output / name
    above = [folder for folder in path.parents if output in folder.parents]
    if any(folder.is_symlink() or (folder.exists() and not folder.is_dir()) for folder in above):
        return False
    if path.is_symlink() or not path.is_dir():
        return own or not os.path.lexists(path)
    return False


def _is_placed(output: Path, name: str, new: dict[str, Path]) -> bool:
    """Whether the new file is there already; its source is gone where there are no links."""
    path, source = output / name, new[name]
    if not source.exists():
        return True
    return path.exists() and not path.is_symlink() and path.samefile(source)


def _place(source: Path, target: Path, temporary: Path) -> None:
    """Give a file a second name, in one step that replaces whatever has it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:  # a file system without links
        source.replace(target)
    else:
        temporary.replace(target)


def _require_readable(path: Path) -> None:
    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ReflogpError(
            f"{path}: the weights that were just written cannot be read back: {error}. Check the "
            "disk and run the same command again; it goes on from the last checkpoint."
        ) from error
