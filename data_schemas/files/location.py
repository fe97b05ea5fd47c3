"""Locations of caches: paths on disk and URLs of object stores, behind the methods of Path."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, PlainSerializer, PlainValidator

from reflogp.data_schemas.errors import InputError

# No cached listings, because other jobs change the folder, and short timeouts, because a server
# can stall. data_schemas/files/retries.py retries whole requests; the second attempt here is for
# one part of a large shard.
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
    """Return a path for `where`: a path, or a URL of any fsspec file system (s3://bucket/folder).

    A URL becomes a universal_pathlib UPath, which is not a pathlib.Path but has its methods for
    names and joins. Signatures call both Path, and data_schemas/files/storage.py reads and writes
    both.

    Raises:
        InputError: `where` is empty, not UTF-8, a URL without a bucket, or a URL whose fsspec
            package is not installed.
    """
    if hasattr(where, "fs"):
        return where  # type: ignore[return-value]
    text = str(where)
    if not text.strip():
        raise InputError("the path is empty. Give a folder or a file; '.' is the current folder.")
    if "\0" in text or not _is_utf8(text):
        raise InputError(f"{text!r}: a path must be UTF-8 without a null character. Rename it.")
    found = _URL.fullmatch(text)
    if found is None:
        # pathlib turns s3://bucket into s3:/bucket, and would silently use a local folder
        if _BROKEN_URL.match(text):
            raise InputError(f"{text}: a URL has two slashes after the colon, as in s3://bucket/x.")
        return _home(Path(where))
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return _file_url(text, rest)
    if not rest.partition("/")[0] and scheme not in {"local", "memory", "hdfs"}:
        raise InputError(f"{text}: the URL names no bucket. Write {scheme}://bucket/folder.")
    try:
        from fsspec.config import conf
        from upath import UPath

        # the user's fsspec configuration takes precedence
        path: Any = UPath(f"{scheme}://{rest}", **_OPTIONS.get(scheme, {}) | conf.get(scheme, {}))
        path.fs  # noqa: B018 - imports the package for this kind of URL
    except Exception as error:
        raise InputError(
            f"{text}: {scheme}:// URLs cannot be used: {error}. For S3, install reflogp[s3]; for "
            "other stores, install their fsspec package, such as gcsfs."
        ) from error
    return path  # type: ignore[no-any-return]


def on_disk(where: str | Path) -> Path:
    """Return the path of `where`, which must be on disk.

    Raises:
        InputError: `where` is not on disk, or as in `location`.
    """
    path = location(where)
    if not is_local(path):
        raise InputError(f"{where}: this must be on disk. Give a local path.")
    return path


def is_local(path: Path) -> bool:
    """Whether `path` is on disk, and not in an object store."""
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
        raise InputError(f"{path}: {error} Give the full path.") from error


def _file_url(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise InputError(f"{text}: a file URL has three slashes after the colon: file:///folder.")
    return Path(slash + unquote(path))


def _not_empty(name: str) -> str:
    """Reject an empty name: an unset shell variable must not mean the current folder."""
    if not name.strip():
        raise ValueError("must not be empty")
    return name


Place = Annotated[str, AfterValidator(_not_empty)]
"""A folder, a file, or a hub id."""


def _validated(where: Any) -> Path:
    if not isinstance(where, str | Path) and not hasattr(where, "fs"):
        raise ValueError("must be a folder or a URL")
    try:
        return location(where)
    except InputError as error:  # pydantic collects ValueErrors and reports them by option
        raise ValueError(str(error)) from error


if TYPE_CHECKING:
    Location = Path
else:
    Location = Annotated[Path, PlainValidator(_validated), PlainSerializer(str)]
