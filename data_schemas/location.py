"""Where a cache is: a folder on disk, or one in object storage, behind the same few methods."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from data_schemas.errors import InputError, ReflogpError

# What a listing remembers, another job may have changed; and a server that stalls must not be
# waited for until the night is over. Each is for the file system of that name in fsspec.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 5},
        },
    },
    "gs": {"use_listings_cache": False},
}  # fmt: skip

# Libraries whose errors are those of a store.
_STORES = {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs"}


def location(where: str | Path) -> Path:
    """The folder `where`: a path, or a URL of any fsspec file system (s3://bucket/folder, ...).

    What a URL gives is no pathlib.Path but universal_pathlib's UPath, which has all of its methods
    that are used on caches; it stands as Path in signatures.

    Raises:
        InputError: it is a URL, and what reads such URLs is not installed.
    """
    text = str(where)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return where if not isinstance(where, str) else Path(where)
    if scheme == "file":
        return Path(text.removeprefix("file://"))
    try:
        from upath import UPath

        path: Any = UPath(text, **_OPTIONS.get(scheme, {}))
        path.fs  # noqa: B018 - imports what reads this kind of URL
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{text}: {scheme}:// cannot be read: {error}. For S3 install reflogp[s3]; for others "
            "fsspec's package for them, such as gcsfs."
        ) from error
    return path  # type: ignore[no-any-return]


def is_local(path: Path) -> bool:
    """Whether `path` is on disk, where writing is followed by fsync and rename."""
    return isinstance(path, Path)


@contextmanager
def reaching(folder: Path) -> Iterator[None]:
    """Within, an object store that refuses or does not answer gives one message.

    Raises:
        ReflogpError: instead of what the store's library raises.
    """
    if is_local(folder):
        yield
        return
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | TimeoutError) and library not in _STORES:
            raise
        raise ReflogpError(
            f"{folder}: the storage failed: {type(error).__name__}: {error}. What is finished is "
            "kept; check address, credentials and network, and run the command again."
        ) from error


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
