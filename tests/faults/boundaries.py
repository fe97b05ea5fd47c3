"""Every place where stage one writes, as a number: to be counted, killed at, or made to fail.

Python's own calls and Arrow's are wrapped where stage one calls them; each is told of before and
after it is done, if it touches the cache.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem


class Boundary(NamedTuple):
    """One call that writes."""

    number: int
    call: str
    path: str


Hook = Callable[[Boundary], None]
_BY_PATH = ("replace", "link", "mkdir", "unlink", "rmdir")
Patch = Callable[[Any, str, Any], None]


def watch(folder: Path, before: Hook, after: Hook, patch: Patch = setattr) -> None:
    """Tell `before` and `after` of each call that writes below `folder`, in their order."""
    count = 0

    def wrap(owner: Any, name: str, path_of: Callable[..., str]) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            path = path_of(*args, **kwargs)
            if not path.startswith(str(folder)):
                return real(*args, **kwargs)
            boundary = Boundary(count, name, path)
            count += 1
            before(boundary)
            try:
                return real(*args, **kwargs)
            finally:
                after(boundary)

        patch(owner, name, wrapped)

    for name in _BY_PATH:
        wrap(os, name, lambda path, *_, **__: os.fspath(path))
    wrap(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    # a file system behind a URL, of the kind that shows a file while it grows but can rename
    for name in ("put_file", "mv"):
        wrap(LocalFileSystem, name, lambda _, source, target, **__: str(target))
    for name in ("write_bytes", "write_text"):
        wrap(Path, name, lambda path, *_, **__: str(path))
    wrap(pq, "write_table", lambda _, where, **__: str(where))
    wrap(pq.ParquetWriter, "__init__", lambda _, where, *__, **___: str(where))
