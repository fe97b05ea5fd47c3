"""SHA-256 of files, with a cache on disk: weights of many GB are read again only if they changed.

A file counts as unchanged if its path, size, inode, modification and change times are the same. A
file that was just written is not cached, since a second write could have the same times.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reflogp.data_schemas.files.atomic import write_text

_WORTH_REMEMBERING = 16 << 20  # bytes; reading a smaller file takes a few milliseconds
_SETTLED_NS = 2_000_000_000
_KEPT = 4096
_THREADS = 8  # hashing releases the GIL, and disks and network drives are faster in parallel

_SHA256 = re.compile("[0-9a-f]{64}")

Digests = dict[str, str]


def file_digests(paths: Sequence[Path]) -> list[bytes]:
    """SHA-256 of the content of each file. Files are read in parallel."""
    memory = _load()
    known = [memory.get(_key(path)) for path in paths]
    unknown = [path for path, digest in zip(paths, known, strict=True) if digest is None]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        fresh = dict(zip(unknown, pool.map(_digest, unknown), strict=True))
    remembered = {_key(path): digest for path, digest in fresh.items() if _is_settled(path)}
    if remembered:
        _save(memory | remembered)
    return [bytes.fromhex(digest or fresh[path]) for path, digest in zip(paths, known, strict=True)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(path: Path) -> str:
    status = path.stat()
    return (
        f"{path.resolve()}|{status.st_size}|{status.st_ino}|{status.st_mtime_ns}"
        f"|{status.st_ctime_ns}"
    )


def _is_settled(path: Path) -> bool:
    status = path.stat()
    age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    return status.st_size >= _WORTH_REMEMBERING and age > _SETTLED_NS


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reflogp" / "digests.json"


def _load() -> Digests:
    try:
        content = json.loads(_file().read_bytes())
    except (OSError, ValueError, RuntimeError):  # the cache is optional, and so is a home folder
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: digest for key, digest in content.items() if _SHA256.fullmatch(str(digest))}


def _save(memory: Digests) -> None:
    try:
        write_text(_file(), json.dumps(dict(list(memory.items())[-_KEPT:])))
    except (OSError, RuntimeError):  # without a writable home folder, files are read again
        return
