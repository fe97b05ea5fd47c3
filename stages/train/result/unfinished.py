"""The folder in which a run works until its result is complete: `OUTPUT/unfinished-1234abcd/`.

It holds checkpoints, metrics and the new result. An earlier result in OUTPUT stays untouched until
the new one replaces it (switch.py). The folder is named after the run's fingerprint, so the same
command finds its checkpoints, and other settings use another folder. A mark shows that reflogp owns
the folder.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.ownership import (
    FILE_NAME,
    HALF_MARK,
    Kind,
    Mark,
    read_mark,
    remove_owned,
    require_output,
    shown,
    write_mark,
)
from reflogp.data_schemas.files.storage import entries

METRICS = "metrics.jsonl"
_FOLDER = re.compile(r"unfinished-[0-9a-f]{8}")
_PARTS = re.compile(r"checkpoint-\d+|result-\w+")
# Files that reflogp, transformers and PEFT write there. A note that a user put there is not one.
_WRITTEN = re.compile(
    rf"(({_PARTS.pattern}|last_good)/)?"
    r"(additional_chat_templates/[^/]+\.jinja|README\.md|(vocab|merges)\.txt"
    r"|[^/]+\.(safetensors|json|jsonl|jinja|parquet|model|pt|pth|bin|tmp))"
    r"|runs/(.+/)?events\.out\.tfevents[^/]*"  # TensorBoard's
)
# Names that a result may need in OUTPUT, or that would be loaded together with it.
_NEEDED = re.compile(
    r"README\.md|metrics\.jsonl|pairs\.parquet|reflogp_run\.json|chat_template\.jinja"
    r"|additional_chat_templates|((generation|adapter|tokenizer)_)?config\.json|tokenizer\..*"
    r"|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json|adapter_model\..*"
    r"|(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)


def unfinished_folder(output: Path, fingerprint: str) -> Path:
    """The folder in `output` in which the run with this fingerprint works."""
    return output / f"unfinished-{fingerprint[:8]}"


def unfinished_folders(output: Path) -> list[Path]:
    """The unfinished folders that reflogp made. Links and unmarked folders do not count."""
    return [
        folder
        for folder in map(output.joinpath, sorted(entries(output)))
        if _FOLDER.fullmatch(folder.name) and not folder.is_symlink() and _mark(folder) is not None
    ]


def require_result_output(output: Path, kind: Kind, *, overwrite: bool = False) -> Mark | None:
    """Like `require_output`, for a run or a sweep, which must not replace a cache.

    Raises:
        InputError: the result cannot be written to `output`.
    """
    if (output.is_symlink() and not output.exists()) or _blocked(output):
        raise InputError(f"--output {output}: the path is not writable. Check it.")
    mark = read_mark(output)
    if mark is not None and mark.kind == "cache":
        raise InputError(
            f"--output {output}: the folder holds a cache, and a {kind} never replaces scored "
            "rows. Give another folder."
        )
    return require_output(output, kind, option="--output", overwrite=overwrite)


def require_free_names(output: Path, folder: Path, own: Collection[str], *, kept: bool) -> None:
    """Refuse an output in which other people's files have names that the result needs.

    Args:
        output: of the run.
        folder: in `output`, in which the run will work.
        own: the files in `output` that reflogp wrote.
        kept: whether checkpoints are kept when the run is finished.

    Raises:
        InputError: there are such files. The message names them.
    """
    tops = {name.partition("/")[0] for name in own}
    found = [
        name
        for name in sorted(set(os.listdir(output) if output.is_dir() else ()) - tops)
        if _NEEDED.fullmatch(name) or (kept and re.fullmatch(r"checkpoint-\d+", name))
    ]
    if found:
        raise InputError(
            f"--output {output}: reflogp did not write {shown(found)}, and the new result needs "
            "these names or would be loaded with them. Move them away, or give another folder."
        )
    strange = [name for name in entries(folder) if not HALF_MARK.fullmatch(name)]
    if folder.is_symlink() or (strange and _mark(folder) is None):
        raise InputError(
            f"--output {output}: reflogp did not write {folder.name}, and the run needs this name. "
            "Move it away, or give another folder."
        )


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep other commands from training into `output` at the same time.

    Raises:
        ReflogpError: another command is training into `output`.
    """
    descriptor = os.open(output, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ReflogpError(
                    f"--output {output}: another command is training into this folder. Wait until "
                    "it ends, or give another folder."
                ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def working(output: Path, folder: Path, own: Collection[str] = ()) -> Iterator[None]:
    """Create `output` and `folder` and mark them as reflogp's. An early failure removes both.

    Args:
        output: of the run; created if it does not exist.
        folder: in `output`, in which the run works.
        own: the files in `output` that reflogp wrote, for the mark if `output` has none.

    Raises:
        ReflogpError: another command is training into `output`.
    """
    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    with alone(output):
        if read_mark(output) is None:
            write_mark(output, Mark(kind="run", files=sorted(own)))
        folder.mkdir(exist_ok=True)
        for half in (path for place in (output, folder) for path in place.glob(".reflogp.json.*")):
            if HALF_MARK.fullmatch(half.name):
                half.unlink()
        if read_mark(folder) is None:
            write_mark(folder, Mark(kind="run"))
        try:
            yield
        except BaseException:
            if set(entries(folder)) == {FILE_NAME}:  # there is nothing to resume from
                discard(folder)
                mark = read_mark(output)
                if set(entries(output)) == {FILE_NAME} and mark is not None and not mark.files:
                    (output / FILE_NAME).unlink()
                    if made:
                        output.rmdir()
            raise


def new_result(folder: Path) -> Path:
    """Create an empty folder in an unfinished one, for the new result."""
    return Path(tempfile.mkdtemp(prefix="result-", dir=folder))


def written(folder: Path) -> list[str]:
    """Files that reflogp and its libraries wrote in an unfinished folder, except its mark."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_file(path)]
    return sorted(name for name in names if name != FILE_NAME and _WRITTEN.fullmatch(name))


def remove_parts(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove checkpoints and incomplete results from an unfinished folder.

    Args:
        folder: the unfinished folder.
        keep: names of the checkpoints to keep.
    """
    parts = {name for name in entries(folder) if _PARTS.fullmatch(name)} - set(keep)
    remove_owned(folder, [name for name in written(folder) if name.partition("/")[0] in parts])
    for part in parts:
        with suppress(OSError):  # it still holds a file that reflogp did not write
            (folder / part).rmdir()


def discard(folder: Path) -> None:
    """Remove what reflogp wrote in an unfinished folder, and the folder if it is empty then.

    The first step unmarks the result, so a kill never leaves a partial one that counts as complete.
    """
    mark = read_mark(folder)
    if mark is None:
        return
    if mark.files:
        write_mark(folder, Mark(kind="run"))
    remove_parts(folder)
    remove_owned(folder, [*mark.files, *written(folder)])
    if set(entries(folder)) == {FILE_NAME}:
        (folder / FILE_NAME).unlink()
        folder.rmdir()


def files_without_mark(output: Path) -> list[str]:
    """Files of a finished run of an earlier reflogp, which wrote no mark. Recognized by name."""
    names = [name for name in os.listdir(output) if _NEEDED.fullmatch(name)]
    card = output / "README.md"
    if card.is_file() and b"\ntags: [dpo, reflogp]\n" not in card.read_bytes():
        names.remove(card.name)
    return names


def _mark(folder: Path) -> Mark | None:
    """The mark of a run's folder; None if reflogp did not make the folder for a run."""
    with suppress(InputError):
        mark = read_mark(folder)
        return mark if mark is not None and mark.kind == "run" else None
    return None


def _blocked(output: Path) -> bool:
    """Whether a file is in the way of a folder above `output`, or that folder is not writable."""
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    return not output.is_file() and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK))


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()
