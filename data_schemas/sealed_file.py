"""A file of a sealed cache: its entry in the manifest, and checks of the file against it."""

import hashlib
import re
from pathlib import Path

from pydantic import Field, field_validator

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import opened
from reflogp.data_schemas.record import Count, Record

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class Shard(Record):
    """The manifest's entry for one file of rows."""

    file: str = Field(description="Name inside the cache folder; never a path.")
    rows: Count
    tokens: Count = Field(description="Prompt tokens, once per row, plus response tokens.")
    bytes: Count
    sha256: str

    @field_validator("file")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # Manifests can be untrusted and must not reach outside their own folder.
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is not a plain file name")
        return name


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_intact(path: Path, record: Shard) -> None:
    """Check that a file's content has not changed since it was sealed.

    Raises:
        InputError: the file is missing, or its SHA-256 differs.
    """
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
    require_sha256(path, digest, record)


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for an unreadable file of a cache."""
    absent = isinstance(error, FileNotFoundError)
    state = "is missing" if absent else f"cannot be read ({error.strerror or error})"
    return InputError(f"{path}: the file {state}. Run `reflogp precompute` again.")


def require_sha256(path: Path, digest: str, record: Shard) -> None:
    """Check a file's digest against its entry in the manifest.

    Raises:
        InputError: the digest differs.
    """
    if digest != record.sha256:
        raise InputError(
            f"{path}: damaged: its SHA-256 is not the one in manifest.json. Delete it and run "
            "`reflogp precompute` again."
        )
