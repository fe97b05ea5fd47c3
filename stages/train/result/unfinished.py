"""Where a run works until its result is whole: `OUTPUT/unfinished-1234abcd/`, marked as its own.

Checkpoints, metrics and the new result grow there, so that an earlier result in OUTPUT stays as it
is until the new one takes its place (switch.py). The folder is named after the run's fingerprint:
the same command finds its checkpoints, and other settings have a folder of their own.
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
# What reflogp, transformers and PEFT write there. A note that somebody put there is not among it.
_WRITTEN = re.compile(
    rf"(({_PARTS.pattern}|last_good)/)?"
    r"(additional_chat_templates/[^/]+\.jinja|README\.md|(vocab|merges)\.txt"
    r"|[^/]+\.(safetensors|json|jsonl|jinja|parquet|model|pt|pth|bin|tmp))"
    r"|runs/(.+/)?events\.out\.tfevents[^/]*"  # TensorBoard's
)
# What a result may need in OUTPUT, or what would be loaded together with it.
_NEEDED = re.compile(
    r"README\.md|metrics\.jsonl|pairs\.parquet|reflogp_run\.json|chat_template\.jinja"
    r"|additional_chat_templates|((generation|adapter|tokenizer)_)?config\.json|tokenizer\..*"
    r"|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json|adapter_model\..*"
    r"|(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)


def unfinished_folder(output: Path, fingerprint: str) -> Path:
    """The folder in `output` where the run with this fingerprint works."""
    return output / f"unfinished-{fingerprint[:8]}"


def unfinished_folders(output: Path) -> list[Path]:
    """Those that reflogp wrote; not a folder that is only called so, and no link."""
    return [
        folder
        for folder in map(output.joinpath, sorted(entries(output)))
        if _FOLDER.fullmatch(folder.name) and not folder.is_symlink() and _mark(folder) is not None
    ]


def require_result_output(output: Path, kind: Kind, *, overwrite: bool = False) -> Mark | None:
    """As `require_output`, of a run or a sweep: none takes the place of scored rows.

    Raises:
        InputError: the result cannot be written there.
    """
    if (output.is_symlink() and not output.exists()) or _blocked(output):
        raise InputError(f"--output {output}: nothing can be written there. Check the path.")
    mark = read_mark(output)
    if mark is not None and mark.kind == "cache":
        raise InputError(
            f"--output {output}: the folder holds a cache, and a {kind} never takes the place of "
            "scored rows. Give another folder."
        )
    return require_output(output, kind, option="--output", overwrite=overwrite)


def require_free_names(output: Path, folder: Path, own: Collection[str], *, kept: bool) -> None:
    """Refuse an output where somebody else's files have names that the result needs.

    Args:
        output: of the run.
        folder: in it, where the run is going to work.
        own: the files in `output` that reflogp wrote.
        kept: whether checkpoints stay when the run is done.

    Raises:
        InputError: so it is; it names them.
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
    """Keep other commands from training into `output` for as long as this one is at work there.

    Raises:
        ReflogpError: another one is.
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
    """Mark `output` and `folder` in it as reflogp's; a run that fails early leaves neither.

    Args:
        output: of the run; made if it is not there.
        folder: in it, where the run works.
        own: the files in `output` that reflogp wrote, for its mark where it has none.

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
            if set(entries(folder)) == {FILE_NAME}:  # there is nothing to go on from
                discard(folder)
                mark = read_mark(output)
                if set(entries(output)) == {FILE_NAME} and mark is not None and not mark.files:
                    (output / FILE_NAME).unlink()
                    if made:
                        output.rmdir()
            raise


def new_result(folder: Path) -> Path:
    """An empty folder in an unfinished one, for what is to be the result."""
    return Path(tempfile.mkdtemp(prefix="result-", dir=folder))


def written(folder: Path) -> list[str]:
    """What reflogp and its libraries wrote in an unfinished folder, but for its mark."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_file(path)]
    return sorted(name for name in names if name != FILE_NAME and _WRITTEN.fullmatch(name))


def remove_parts(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove checkpoints and half results from an unfinished folder.

    Args:
        folder: the unfinished folder.
        keep: names of the checkpoints in it that stay.
    """
    parts = {name for name in entries(folder) if _PARTS.fullmatch(name)} - set(keep)
    remove_owned(folder, [name for name in written(folder) if name.partition("/")[0] in parts])
    for part in parts:
        with suppress(OSError):  # somebody else's file is in it
            (folder / part).rmdir()


def discard(folder: Path) -> None:
    """Remove what reflogp wrote in an unfinished folder, and the folder if nothing else is in it.

    From its first step on, what is there is no whole result any more.
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
    """The files of a finished run by an earlier reflogp, which left no mark: the names it used."""
    names = [name for name in os.listdir(output) if _NEEDED.fullmatch(name)]
    card = output / "README.md"
    if card.is_file() and b"\ntags: [dpo, reflogp]\n" not in card.read_bytes():
        names.remove(card.name)
    return names


def _mark(folder: Path) -> Mark | None:
    """The mark of a folder if it is one of a run; None for what somebody else called so."""
    with suppress(InputError):
        mark = read_mark(folder)
        return mark if mark is not None and mark.kind == "run" else None
    return None


def _blocked(output: Path) -> bool:
    """Whether a file stands where a folder above `output` should be, or nothing may be written."""
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    return not output.is_file() and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK))


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()
