"""Ownership marks: reflogp deletes and replaces only the files that it wrote.

Each output folder has a mark, `reflogp.json`, with the kind of result and the files that reflogp
wrote. Every other file belongs to somebody else, whatever its name. A single file, such as an HTML
page, has its mark inside.
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
"""The mark at the beginning of every page that reflogp writes."""

HALF_MARK = re.compile(rf"\.{re.escape(FILE_NAME)}\.[0-9a-f]{{12}}\.tmp")
"""Name of an unfinished mark that a killed command left; no other program uses such names."""

Kind = Literal["cache", "run", "sweep", "export", "charts"]
_A: dict[Kind, str] = {
    "cache": "a cache", "run": "a training run", "sweep": "a sweep", "export": "an export",
    "charts": "charts",
}  # fmt: skip
_NAMED = 5  # files in one message
_HEAD_BYTES = 4096  # bytes of a page that are searched for its mark


class Mark(Record):
    """The mark of a folder: what reflogp wrote in it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    reflogp_version: str = Field(default_factory=lambda: version("reflogp"))
    kind: Kind
    files: list[str] = Field(
        [],
        description="Every file that reflogp wrote, relative to the folder, with forward slashes. "
        "For a cache, only those that no manifest and no plan lists.",
    )
    replaced: list[str] = Field(
        [],
        description="For a cache, the first 8 digits of the input digests whose files can be "
        "removed once their successor is sealed.",
    )

    @field_validator("files")
    @classmethod
    def _inside(cls, names: list[str]) -> list[str]:
        # marks can be untrusted and must not reach outside their own folder
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"{name!r} is not a path inside the folder")
        return names


def read_mark(folder: Path) -> Mark | None:
    """Return the mark of `folder`, or None if it has none.

    Raises:
        InputError: the mark is damaged, or of an unknown version.
    """
    path = folder / FILE_NAME
    try:
        return Mark.model_validate(from_json(read_bytes(path, MOST_BYTES), allow_inf_nan=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: this reflogp cannot read the folder's mark: {reason}. Give another folder, "
            "or install the reflogp version that wrote it. If the file is damaged, delete it: "
            "caches and runs are recognized without it."
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
    """Check that an output folder is empty or reflogp's own, before anything is computed.

    Args:
        folder: the output folder.
        kind: the kind of result to be written.
        option: the option that named the folder, for messages.
        overwrite: whether reflogp's own results of another kind can be replaced; None if the
            command has no such option.
        unmarked: whether the content is known to be reflogp's without a mark, which earlier
            releases did not write.

    Returns:
        The folder's mark, or None if it has none.

    Raises:
        InputError: the folder has files that reflogp did not write, or a result of another kind.
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
            f"{option} {folder}: the folder has files that reflogp did not write "
            f"({shown(names)}). Give a new or an empty folder."
        )
    if mark.kind != kind and not overwrite:
        instead = "" if overwrite is None else f", or --overwrite to replace it with {_A[kind]}"
        raise InputError(
            f"{option} {folder}: the folder holds {_A[mark.kind]}, not {_A[kind]}. Give another "
            f"folder{instead}."
        )
    return mark


def trial_file(folder: Path) -> Path:
    """Return a file name to write into `folder` as a test of write access."""
    return folder / f".{FILE_NAME}.{uuid.uuid4().hex[:12]}.tmp"


def require_apart(option: str, output: Path, inputs: Mapping[str, Path | None]) -> None:
    """Check that an output is not an input, inside an input, around an input, or inside a cache.

    Links are followed.

    Args:
        option: the option that named the output, for messages.
        output: a folder or a file.
        inputs: the paths that the command reads, by option or by name.

    Raises:
        InputError: the output overlaps an input or lies inside a cache.
    """
    for name, given in inputs.items():
        if given is None or is_local(given) != is_local(output):
            continue
        place, other = _place(output), _place(given)
        if place == other:
            raise InputError(f"{option} {output}: this is the {name}. Give another path.")
        if other in place.parents:
            raise InputError(
                f"{option} {output}: this lies inside the {name}, {given}. Give another path."
            )
        if place in other.parents:
            raise InputError(
                f"{option} {output}: the {name}, {given}, lies inside it. Give another path."
            )
    for parent in _place(output).parents if is_local(output) else ():
        mark = read_mark(parent)
        if mark is not None and mark.kind == "cache":
            raise InputError(
                f"{option} {output}: this lies inside a cache, {parent}. Give another path."
            )


def require_page(option: str, path: Path, suffix: str = ".html") -> None:
    """Check that writing a page replaces nothing but a page of reflogp's.

    Raises:
        InputError: the suffix is wrong, or the path is a link, a folder, a device, or a file that
            reflogp did not write.
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
            f"{option} {path}: this exists already, and reflogp did not write it. Give another "
            "name."
        )


def remove_owned(folder: Path, names: Iterable[str]) -> None:
    """Remove files that reflogp wrote in a folder on disk, and subfolders that become empty.

    Args:
        folder: a folder with reflogp's mark.
        names: files relative to the folder. Missing ones are ignored, and links not followed.
    """
    parents: set[Path] = set()
    for name in names:
        path = folder / name
        if path.parent.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
            parents |= {parent for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):  # it has somebody else's files
            parent.rmdir()


def shown(names: Iterable[str]) -> str:
    """Return the first few names and the number of others."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _require_folder(folder: Path, option: str) -> None:
    """Reject a path on disk that neither is a folder nor can become one."""
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{option} {folder}: this is a broken link. Give a folder.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        what = "this" if there == folder else str(there)
        raise InputError(f"{option} {folder}: {what} is a file. Give a folder.")


def _place(path: Path) -> Path:
    """Return a comparable path: links resolved, or a URL without its trailing slash."""
    return path.resolve() if is_local(path) else Path(str(path).rstrip("/"))
