"""The same file operations for disks and object stores: list, read, put, remove.

A missing file and a failing store are kept apart. If an outage looked like an empty folder,
everything would be scored again; if it looked like damage, good shards would be thrown away.
Absence is therefore FileNotFoundError or an empty listing, and an outage that outlasts the retries
is a StorageError.
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
from reflogp.data_schemas.files.retries import ABSENT, Result, ask

# Concurrent requests, each of which can hold a whole shard in memory. At 30 ms per response, 200
# footers take 29 s one by one and 4 s with 8 threads.
_THREADS = 8

# Stores with an atomic put. Others (hdfs, sftp) show partial files, but can rename.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}

Item = TypeVar("Item")


def reach(folder: Path) -> None:
    """Check early that the store of `folder` can be used.

    Raises:
        StorageError: the store does not answer, denies access, or has no such bucket.
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
    """Check before the work begins that `trial` can be written to its store.

    Raises:
        StorageError: see `put`.
    """
    if is_local(trial):
        return
    with tempfile.NamedTemporaryFile() as empty:
        put(Path(empty.name), trial)
    with suppress(StorageError):  # credentials without the right to delete are enough
        remove(trial)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of `folder` has room for a result. Object stores always do.

    Args:
        folder: the output folder, which need not exist yet.
        needed: least number of bytes that the result takes.
        what: the result, for the message.

    Raises:
        InputError: the disk has fewer bytes free.
    """
    if not is_local(folder):
        return
    places = (folder.absolute(), *folder.absolute().parents)
    free = shutil.disk_usage(next(path for path in places if path.exists())).free
    if free < needed:
        raise InputError(
            f"{folder}: the disk has {free / 1e6:,.1f} MB free, but {what} takes at least "
            f"{needed / 1e6:,.1f} MB. Free some space, or give a folder on another disk."
        )


def entries(folder: Path) -> dict[str, int | None]:
    """Return the size in bytes of each file in `folder` by name, None for a subfolder.

    The result is empty if `folder` does not exist.
    """
    if not is_local(folder):
        return _entries(folder)
    found: dict[str, int | None] = {}
    with suppress(*ABSENT):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # another job can have removed it just now
                found[entry.name] = None if entry.is_dir() else entry.stat().st_size
    return found


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: the file.
        most: largest allowed size in bytes; unlimited if None.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is too large, or not a regular file (devices and pipes can be endless).
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
    """Return the last `count` bytes of a file, or all of a shorter one. Raises as `read_bytes`."""
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
    """Open a file for reading; one in a store is downloaded first. Raises as `read_bytes`."""
    if is_local(path):
        with _opened(path) as file:
            yield file
    else:
        yield io.BytesIO(read_bytes(path))


def require_inside(path: Path) -> None:
    """Reject a link that leads out of its folder.

    Links in the Hugging Face hub's cache, from snapshots to blobs, are allowed.

    Raises:
        OSError: `path` is such a link.
    """
    if not is_local(path) or not path.is_symlink():
        return
    folder, target = path.parent.resolve(), path.resolve()
    blobs = [up.parent / "blobs" for up in folder.parents if up.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (folder, *blobs)):
        raise OSError(errno.EPERM, f"it is a link out of its folder, to {target}", str(path))


def _opened(path: Path) -> io.BufferedReader:
    """Open a regular file on disk, without blocking on a pipe that has no writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def _require_modest(path: Path, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {most:,}", str(path))


def modified(path: Path) -> float | None:
    """Return when a file was last written, in seconds since 1970; None if it does not exist."""
    try:
        if is_local(path):
            return path.stat().st_mtime
        return float(ask(path, lambda fs, name: fs.modified(name)).timestamp())
    except ABSENT:
        return None


def put(file: Path, target: Path, alias: str | None = None) -> None:
    """Copy a file on disk to `target` in a store, atomically.

    In stores without an atomic put, `alias` names the temporary file, as in `atomic_path`.

    Raises:
        StorageError: the store fails, denies access, or has no such bucket.
    """
    try:
        ask(target, lambda fs, name: _put_once(fs, str(file), target, alias or target.name))
    except ABSENT as error:
        raise _no_bucket(target) from error


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    if is_local(path):
        path.unlink(missing_ok=True)
        return
    with suppress(*ABSENT):
        ask(path, lambda fs, name: fs.rm_file(name))


def rename(path: Path, target: Path) -> None:
    """Rename a file if it exists."""
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
    """Remove a folder if it is empty. Most object stores have no folders to remove."""
    if is_local(folder):
        with suppress(OSError):
            folder.rmdir()
    elif not entries(folder):
        with suppress(*ABSENT):
            ask(folder, lambda fs, name: fs.rmdir(name))


def at_once(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply `call` to each item in several threads, and yield the results in order.

    A store answers many requests as fast as one. At most as many results as threads wait to be
    taken.
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
        # web consoles of object stores create an empty object to represent an empty folder
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
    return StorageRefusedError(f"{path}: there is no such bucket. Create it, or check its name.")
