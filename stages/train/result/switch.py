"""Replaces an old result by a new one with renames, in an order that is safe against a kill.

A single rename cannot do it, because OUTPUT can hold files of other people and can be a mount
point. After a kill, the next command with the same output completes the switch. A model that loads
from OUTPUT is always one of the two.
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

# without these files no model loads, and no run counts as finished
_HEADS = ("adapter_config.json", "config.json", run_record.FILE_NAME)
_PLACING = ".placing.tmp"


def commit(folder: Path, result: Path, checkpoints: Collection[str]) -> None:
    """Sync the new result to disk, and mark it as complete.

    Args:
        folder: the unfinished folder.
        result: the folder in it that holds the model, its card and its record.
        checkpoints: names of the checkpoints in `folder` to keep with the result.

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
    """Move the complete result in `folder` to `output`, replacing what reflogp wrote there before.

    The steps are:

    1. The mark of `folder` lists the files of the new result (`commit`).
    2. The mark of `output` lists the old and the new files.
    3. The old configuration, without which the old model does not load, is removed, then its other
       files.
    4. The new files are placed, each by a rename, the configuration last. They are hard links to
       the files in `folder`, which stays complete throughout.
    5. The mark of `output` lists only the new files, and `folder` is removed.

    After a kill, the next call starts again at step 2.

    Raises:
        ReflogpError: a file that reflogp did not write has a name that the result needs.
    """
    mark = read_mark(output)
    old = set(mark.files) if mark is not None else set()
    new = {re.sub(r"^result-\w+/", "", name): folder / name for name in _result(folder)}
    if taken := [name for name in sorted(new) if not _is_free(output, name, name in old)]:
        raise ReflogpError(
            f"--output {output}: the new result is complete in {folder}, but the output has files "
            f"with the same names that reflogp did not write: {shown(taken)}. Move them away and "
            "run the same command again: nothing is trained twice."
        )
    write_mark(output, Mark(kind="run", files=sorted(old | new.keys())))
    leaving = [name for name in old if name not in new] + [
        name for name in _HEADS if name in old and name in new and not _is_placed(output, name, new)
    ]
    leaving = [name for name in leaving if not (output / name).is_dir()]  # somebody else's folder
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
    """The unfinished folder with a complete result that is not yet in place, if there is one."""
    return next((folder for folder in unfinished_folders(output) if _result(folder)), None)


def finish(output: Path) -> None:
    """Move a complete result into place if the run was killed before or during the move.

    Raises:
        ReflogpError: as in `switch`, or another command is training into `output`.
    """
    with alone(output):
        if (folder := ready(output)) is not None:
            switch(output, folder)


def sync(folder: Path, names: Iterable[str] = ()) -> None:
    """Fsync files in `folder`, and the folders that list them."""
    paths = {folder / name for name in names}
    paths |= {path.parent for path in paths} | {folder}
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _result(folder: Path) -> list[str]:
    """The files of the result in an unfinished folder; empty until the result is complete."""
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
    """Whether the new file is in place. Without hard links, its source no longer exists then."""
    path, source = output / name, new[name]
    if not source.exists():
        return True
    return path.exists() and not path.is_symlink() and path.samefile(source)


def _place(source: Path, target: Path, temporary: Path) -> None:
    """Give a file a second name, atomically replacing any file with that name."""
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
            "disk and run the same command again; it resumes from the last checkpoint."
        ) from error
