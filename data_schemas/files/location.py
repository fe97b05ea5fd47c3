"""Where a cache is: a folder on disk, or one in object storage, behind the same few methods."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, PlainSerializer, PlainValidator

from reflogp.data_schemas.errors import InputError

# What a listing remembers, another job may have changed; and a server that stalls must not be
# waited for until the night is over. Trying again is for data_schemas/files/storage.py; the second
# attempt here is for one part of a large shard.
_S3: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 2},
    },
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_BROKEN_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|hdfs|file|memory):/?[^/]")


def location(where: str | Path) -> Path:
    """The folder `where`: a path, or a URL of any fsspec file system (s3://bucket/folder, ...).

    What a URL gives is no pathlib.Path but universal_pathlib's UPath, which joins and names like
    one and stands as Path in signatures; data_schemas/files/storage.py reads and writes both.

    Raises:
        InputError: it is empty, no text, a URL that names no folder, or what reads such URLs is
            not installed.
    """
    if hasattr(where, "fs"):
        return where  # type: ignore[return-value]
    text = str(where)
    if not text.strip():
        raise InputError("an empty path was given. Give a folder or a file; '.' is this folder.")
    if "\0" in text or not _is_utf8(text):
        raise InputError(f"{text!r}: a path must be UTF-8 without a null character. Rename it.")
    found = _URL.fullmatch(text)
    if found is None:
        # pathlib makes s3:/bucket of s3://bucket, and a folder of that name would be no surprise
        # to anybody but the user
        if _BROKEN_URL.match(text):
            raise InputError(f"{text}: a URL has two slashes after its colon, as in s3://bucket/x.")
        return _home(Path(where))
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return _file_url(text, rest)
    if not rest.partition("/")[0] and scheme not in {"local", "memory", "hdfs"}:
        raise InputError(f"{text}: no bucket is named; write {scheme}://bucket/folder.")
    try:
        from fsspec.config import conf
        from upath import UPath

        # what the user's own configuration of fsspec says, holds
        path: Any = UPath(f"{scheme}://{rest}", **_OPTIONS.get(scheme, {}) | conf.get(scheme, {}))
        path.fs  # noqa: B018 - imports what reads this kind of URL
    except Exception as error:
        raise InputError(
            f"{text}: {scheme}:// cannot be used here: {error}. For S3 install reflogp[s3]; for "
            "others fsspec's package for them, such as gcsfs."
        ) from error
    return path  # type: ignore[no-any-return]


def on_disk(where: str | Path) -> Path:
    """The file or folder `where`, which must be on disk.

    Raises:
        InputError: it is a URL of something else, or as in `location`.
    """
    path = location(where)
    if not is_local(path):
        raise InputError(f"{where}: this must be on disk. Give a path.")
    return path


def is_local(path: Path) -> bool:
    """Whether `path` is on disk, where writing is followed by fsync and rename."""
    return isinstance(path, Path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error} Give the whole path.") from error


def _file_url(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise InputError(f"{text}: a file URL has three slashes before its path: file:///folder.")
    return Path(slash + unquote(path))


def _not_empty(name: str) -> str:
    """What a variable that is not set leaves of an option must not mean the current folder."""
    if not name.strip():
        raise ValueError("must not be empty")
    return name


Place = Annotated[str, AfterValidator(_not_empty)]
"""A folder, a file, or a name on the hub."""


def _validated(where: Any) -> Path:
    if not isinstance(where, str | Path) and not hasattr(where, "fs"):
        raise ValueError("must be a folder or a URL")
    try:
        return location(where)
    except InputError as error:  # pydantic reports ValueErrors together, by option
        raise ValueError(str(error)) from error


if TYPE_CHECKING:
    Location = Path
else:
    Location = Annotated[Path, PlainValidator(_validated), PlainSerializer(str)]
