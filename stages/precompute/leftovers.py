"""What goes from a cache's folder once the cache in it is sealed.

A job that is killed just before or while it clears up leaves things behind; so every later command
that finds the cache sealed clears up, too.
"""

import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_schemas import manifest as manifests
from data_schemas.errors import InputError
from data_schemas.location import is_local
from data_schemas.manifest import Manifest

_OLD_SECONDS = 24 * 3600
# All of a job's names carry 8 digits of its inputs' digest.
_OWNED = re.compile(r"(?:plan|\.?(?:shard|quarantine|job)|\.manifest)-([0-9a-f]{8})(?:[-.]|$)")


def remove_leftovers(cache: Path, *done: Manifest) -> None:
    """Remove plans, accounts, temporary files and shards that nobody needs any more.

    Files of other inputs may belong to a job that is at work in the same folder, which has a plan:
    they go only when nobody has touched any of them for a day. What cannot be removed stays.

    Args:
        cache: the folder.
        done: what was sealed in it; no job is at work on it.
    """
    paths = list(cache.iterdir())
    # Read after the listing: a job seals before it removes its plan, so that files seen without a
    # plan are those of a cache that is sealed by now, or of one that was.
    try:
        sealed = manifests.read(cache)
    except InputError:
        return
    kept = {shard.file for shard in [*sealed.shards, sealed.quarantine]}
    finished = {manifest.inputs.digest()[:8] for manifest in [*done, sealed]}
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path.name not in kept and (owner := _OWNED.match(path.name)):
            found[owner[1]].append(path)
    for digest, files in found.items():
        if digest in finished or not _at_work(files):
            for path in files:
                _remove(path)


def _at_work(paths: list[Path]) -> bool:
    plans = [path for path in paths if _is_plan(path)]
    return bool(plans) and time.time() - max(map(_touched, _files(paths))) < _OLD_SECONDS


def _is_plan(path: Path) -> bool:
    return path.name.startswith("plan-")


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if _is_plan(path):
            with suppress(FileNotFoundError):  # another job clears up at the same time
                yield from path.iterdir()


def _touched(path: Path) -> float:
    """When the file was last written; 0 where it is gone, or a folder in a store."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    with suppress(OSError):
        if not _is_plan(path):
            path.unlink(missing_ok=True)
        elif is_local(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            for file in path.iterdir():
                file.unlink(missing_ok=True)
