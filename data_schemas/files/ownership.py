"""What in a folder is reflogp's own: nothing else is ever deleted or replaced.

A folder that reflogp writes holds a mark, `reflogp.json`, which says what kind of result is there
and names the files that reflogp wrote. Everything that the mark does not name belongs to somebody
else, whatever it is called. A single file, such as a page, carries its mark inside.
"""

import re
import stat
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import from_json

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.storage import entries, read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Record

FILE_NAME = "reflogp.json"
SCHEMA_VERSION: Literal[1] = 1
GENERATOR = '<meta name="generator" content="reflogp">'
"""Stands at the beginning of every page that reflogp writes."""

HALF_MARK = re.compile(rf"\.{re.escape(FILE_NAME)}\.[0-9a-f]{{12}}\.tmp")
"""The name of a mark that a killed command was about to write; nobody else's file is called so."""

Kind = Literal["cache", "run", "sweep", "export", "charts"]
_A: dict[Kind, str] = {
    "cache": "a cache", "run": "a training run", "sweep": "a sweep", "export": "an export",
    "charts": "charts",
}  # fmt: skip
_NAMED = 5  # files in one message
_HEAD_BYTES = 4096  # of a page, in which its generator is looked for


class Mark(Record):
    """What reflogp wrote in a folder."""

    schema_version: Literal[1] = SCHEMA_VERSION
    reflogp_version: str = Field(default_factory=lambda: version("reflogp"))
    kind: Kind
    files: list[str] = Field(
        [],
        description="Every file that reflogp wrote, relative to the folder, with forward slashes. "
        "Of a cache, those that stand in no manifest and in no plan.",
    )
    replaced: list[str] = Field(
        [],
        description="Of a cache: the first 8 digits of the input digests whose files may go once "
        "the cache that takes their place is sealed.",
    )

    @field_validator("files")
    @classmethod
    def _inside(cls, names: list[str]) -> list[str]:
        # a mark can come from a stranger: it must not reach outside its own folder
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"{name!r} is not a path inside the folder")
        return names


def read_mark(folder: Path) -> Mark | None:
    """The mark of `folder`; None where there is none.

    Raises:
        InputError: it is damaged, or of a version that this reflogp does not know.
    """
    path = folder / FILE_NAME
    try:
        return Mark.model_validate(from_json(read_bytes(path, MOST_BYTES), allow_inf_nan=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a mark that this reflogp can read: {reason}. Give another folder, or "
            "install the reflogp that wrote it. If the file is damaged, delete it: a cache and a "
            "run are known without it."
        ) from error


def write_mark(folder: Path, mark: Mark) -> None:
    """Write or rewrite the mark of `folder`."""
    write_text(folder / FILE_NAME, mark.model_dump_json(indent=2) + "\n")


def require_output(
    folder: Path,
    kind: Kind,
    *,
    option: str,
    overwrite: bool | None = False,
    unmarked: bool = False,
) -> Mark | None:
    """Refuse an output folder whose content is not reflogp's, before anything is computed.

    Args:
        folder: where a result of `kind` is to be written.
        kind: of the result.
        option: under which the folder was given, for messages.
        overwrite: whether reflogp's own results of another kind may be replaced; None: the
            command cannot do that.
        unmarked: whether what is there is known for reflogp's own even without a mark, which
            earlier releases did not write.

    Returns:
        The mark of what is there; None where there is none.

    Raises:
        InputError: something is there that reflogp did not write, or a result of another kind.
    """
    if is_local(folder):
        _require_folder(folder, option)
    names = sorted(name for name in entries(folder) if not HALF_MARK.fullmatch(name))
    if not names:
        return None
    mark = read_mark(folder)
    if mark is None and unmarked:
        return None
    if mark is None:
        raise InputError(
            f"{option} {folder}: the folder is not empty ({shown(names)}), and reflogp did not "
            "write what is in it. Give a new or an empty folder."
        )
    if mark.kind != kind and not overwrite:
        instead = "" if overwrite is None else f", or --overwrite to put {_A[kind]} in its place"
        raise InputError(
            f"{option} {folder}: the folder holds {_A[mark.kind]}, not {_A[kind]}. Give another "
            f"folder{instead}."
        )
    return mark


def trial_file(folder: Path) -> Path:
    """A file that can be put into `folder` to see whether it can be written to."""
    return folder / f".{FILE_NAME}.{uuid.uuid4().hex[:12]}.tmp"


def require_apart(option: str, output: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is an input of the same command, lies inside one, or holds one.

    It may not lie inside any other cache either.

    Args:
        option: under which the output was given, for messages.
        output: a folder or a file.
        inputs: what the command reads, by the option or the name that people know it by.

    Raises:
        InputError: so it is, links followed.
    """
    for name, given in inputs.items():
        if given is None or is_local(given) != is_local(output):
            continue
        place, other = _place(output), _place(given)
        if place == other:
            raise InputError(f"{option} {output}: this is the {name}. Give another place.")
        if other in place.parents:
            raise InputError(
                f"{option} {output}: this lies inside the {name}, {given}. Give another place."
            )
        if place in other.parents:
            raise InputError(
                f"{option} {output}: the {name}, {given}, lies inside it. Give another place."
            )
    for parent in _place(output).parents if is_local(output) else ():
        mark = read_mark(parent)
        if mark is not None and mark.kind == "cache":
            raise InputError(
                f"{option} {output}: this lies inside a cache, {parent}. Give another place."
            )


def require_page(option: str, path: Path, suffix: str = ".html") -> None:
    """Refuse to write a page where something stands that reflogp did not write.

    Raises:
        InputError: the path is empty or of another suffix, or a file is there that is no page of
            reflogp's, a link, a folder or a device.
    """
    if path.suffix.lower() != suffix:
        raise InputError(f"{option} {path}: the file's name must end in {suffix}.")
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    ours = False
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            ours = GENERATOR.encode() in file.read(_HEAD_BYTES)
    if not ours:
        raise InputError(
            f"{option} {path}: this is there already, and reflogp did not write it. Give another "
            "name."
        )


def remove_owned(folder: Path, names: Iterable[str]) -> None:
    """Remove files that reflogp wrote in a folder on disk, and the folders that they leave empty.

    Args:
        folder: marked as reflogp's.
        names: relative to the folder; one that is gone already is fine. Links are not followed.
    """
    parents: set[Path] = set()
    for name in names:
        path = folder / name
        if path.parent.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
            parents |= {parent for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):  # somebody else's file is in it
            parent.rmdir()


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _require_folder(folder: Path, option: str) -> None:
    """Refuse a path on disk where no folder is and none can be made."""
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{option} {folder}: this is a link to nothing. Give a folder.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        what = "this" if there == folder else str(there)
        raise InputError(f"{option} {folder}: {what} is a file. Give a folder.")


def _place(path: Path) -> Path:
    """A path that can be compared with another: links followed, or a URL without its last slash."""
    return path.resolve() if is_local(path) else Path(str(path).rstrip("/"))
