"""The files of a cache, on disk or in a store: listed, read, put and removed in one way.

A file that is absent and a store that does not answer are two things. An outage that looked like
an empty folder would have everything scored again, and one that looked like damage would throw a
good shard away. So absence is FileNotFoundError or an empty listing; what fails is tried again for
a while, and then it is a StorageError, which no one takes for anything else.
"""

import errno
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from reflogp.data_schemas.errors import InputError, StorageError, StorageRefusedError
from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.requests import ABSENT, Result, ask

# Requests at a time, each of which may hold a whole shard in memory. With 30 ms an answer, 200
# footers take 29 s one by one and 4 s like this.
_THREADS = 8

# What puts an object whole. Others (hdfs, sftp) show a file while it grows, but can rename.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}

Item = TypeVar("Item")


def reach(folder: Path) -> None:
    """Fail soon, and say why, if the store of `folder` cannot be used at all.

    Raises:
        StorageError: it does not answer, refuses, or has no such bucket.
    """
    if is_local(folder):
        return
    try:
        ask(folder, lambda fs, name: fs.ls(name), patience=0)
    except ABSENT as error:
        response = getattr(error.__cause__, "response", {})
        if response.get("Error", {}).get("Code") == "NoSuchBucket":
            raise _no_bucket(folder) from error


def require_writable(trial: Path) -> None:
    """Fail before the work begins if a file such as `trial` cannot be put into its store.

    Raises:
        StorageError: see `put`.
    """
    if is_local(trial):
        return
    with tempfile.NamedTemporaryFile() as empty:
        put(Path(empty.name), trial)
    with suppress(StorageError):  # one that may not delete can still be filled
        remove(trial)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what clearly does not fit on the disk of `folder`; a store has no end.

    Args:
        folder: need not be there yet.
        needed: bytes, at the very least.
        what: is to be written, for the message.

    Raises:
        InputError: fewer are free.
    """
    if not is_local(folder):
        return
    places = (folder.absolute(), *folder.absolute().parents)
    free = shutil.disk_usage(next(path for path in places if path.exists())).free
    if free < needed:
        raise InputError(
            f"{folder}: the disk has {free / 1e6:,.1f} MB free, and {what} takes at the very least "
            f"{needed / 1e6:,.1f} MB. Make room, or give a folder on another disk."
        )


def entries(folder: Path) -> dict[str, int | None]:
    """What is in `folder`: the bytes of each file by name, None for a folder; empty if absent."""
    if not is_local(folder):
        return _entries(folder)
    found: dict[str, int | None] = {}
    with suppress(*ABSENT):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # another job may have removed it just now
                found[entry.name] = None if entry.is_dir() else entry.stat().st_size
    return found


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        most: bytes that it may have; None: any number.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is no regular file (a device or a pipe can be read without end), or too large.
        StorageError: the store cannot be read.
    """
    if is_local(path):
        with _opened(path) as file:
            _require_modest(path, os.fstat(file.fileno()).st_size, most)
            return file.read()

    if most is not None:
        _require_modest(path, int(ask(path, lambda fs, name: fs.info(name)["size"])), most)
    return bytes(ask(path, lambda fs, name: fs.cat_file(name)))


def read_end(path: Path, count: int) -> bytes:
    """The last `count` bytes of a file, or all of a shorter one. Raises as `read_bytes`."""
    if is_local(path):
        with _opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - count))
            return file.read()

    def end(fs: Any, name: str) -> bytes:
        size = fs.info(name)["size"]
        return bytes(fs.cat_file(name, start=max(0, size - count), end=size)) if size else b""

    return ask(path, end)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file open for reading; one in a store is fetched whole first. Raises as `read_bytes`."""
    if is_local(path):
        with _opened(path) as file:
            yield file
    else:
        yield io.BytesIO(read_bytes(path))


def require_inside(path: Path) -> None:
    """Refuse a link that leads out of its folder.

    Those of the Hugging Face hub's own cache, from snapshots into blobs, may.

    Raises:
        OSError: so it does.
    """
    if not is_local(path) or not path.is_symlink():
        return
    folder, target = path.parent.resolve(), path.resolve()
    blobs = [up.parent / "blobs" for up in folder.parents if up.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (folder, *blobs)):
        raise OSError(errno.EPERM, f"it is a link out of its folder, to {target}", str(path))


def _opened(path: Path) -> io.BufferedReader:
    """A regular file on disk; to open a pipe must not wait for somebody who writes to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def _require_modest(path: Path, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {most:,} at most", str(path))


def modified(path: Path) -> float | None:
    """When a file was written last, in seconds since 1970; None where there is none."""
    try:
        if is_local(path):
            return path.stat().st_mtime
        return float(ask(path, lambda fs, name: fs.modified(name)).timestamp())
    except ABSENT:
        return None


def put(file: Path, target: Path, alias: str | None = None) -> None:
    """Copy a file on disk to `target` in a store, whole or not at all.

    Where the store can only rename, `alias` names the file that grows, as in atomic_path.

    Raises:
        StorageError: the store fails, refuses, or has no such bucket.
    """
    try:
        ask(target, lambda fs, name: _put_once(fs, str(file), target, alias or target.name))
    except ABSENT as error:
        raise _no_bucket(target) from error


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is fine."""
    if is_local(path):
        path.unlink(missing_ok=True)
        return
    with suppress(*ABSENT):
        ask(path, lambda fs, name: fs.rm_file(name))


def rename(path: Path, target: Path) -> None:
    """Give a file another name in its folder; one that is gone already is fine."""
    with suppress(FileNotFoundError):
        if is_local(path):
            path.replace(target)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(read_bytes(path))
            put(copy, target)
        remove(path)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if nothing is in it; most object stores have no folders to remove."""
    if is_local(folder):
        with suppress(OSError):
            folder.rmdir()
    elif not entries(folder):
        with suppress(*ABSENT):
            ask(folder, lambda fs, name: fs.rmdir(name))


def at_once(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` with several calls at a time: a store answers many as fast as one.

    No more results are waiting to be taken than there are threads.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) == _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _entries(folder: Path) -> dict[str, int | None]:
    def listing(fs: Any, name: str) -> list[dict[str, Any]]:
        fs.invalidate_cache(name)
        return list(fs.ls(name, detail=True))

    try:
        found = ask(folder, listing)
    except ABSENT:
        return {}
    return {
        entry["name"].rstrip("/").rpartition("/")[2]: (
            None if entry["type"] == "directory" else int(entry["size"])
        )
        for entry in found
        # consoles of object stores stand an empty object in for an empty folder
        if entry["size"] or entry["name"].strip("/") != str(folder.path).strip("/")  # type: ignore[attr-defined]
    }


def _put_once(fs: Any, file: str, target: Any, alias: str) -> None:
    if target.protocol in _OBJECT_STORES:
        fs.put_file(file, target.path)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    growing = target.with_name(f".{alias}.{uuid.uuid4().hex[:12]}.tmp")
    fs.put_file(file, growing.path)
    fs.mv(growing.path, target.path)


def _no_bucket(path: Path) -> StorageRefusedError:
    return StorageRefusedError(f"{path}: there is no such bucket. Make it, or check its name.")
