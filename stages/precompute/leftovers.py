"""What goes from a cache's folder once the cache in it is sealed.

A job that is killed just before or while it clears up leaves things behind; so every later command
that finds the cache sealed clears up, too.
"""

import re
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data_schemas import manifest as manifests
from data_schemas.errors import InputError, StorageError
from data_schemas.location import is_local
from data_schemas.manifest import Manifest
from data_schemas.storage import entries, modified, remove, remove_folder

_OLD_SECONDS = 24 * 3600
# All of a job's names carry 8 digits of its inputs' digest.
_OWNED = re.compile(r"(?:plan|\.*(?:shard|quarantine|job)|\.manifest)-([0-9a-f]{8})(?:[-.]|$)")


def remove_leftovers(cache: Path, *done: Manifest) -> None:
    """Remove plans, accounts, temporary files and shards that nobody needs any more.

    Files of other inputs may belong to a job that is at work in the same folder, which has a plan:
    they go only when nobody has touched any of them for a day. What cannot be removed stays.

    Args:
        cache: the folder.
        done: what was sealed in it; no job is at work on it.
    """
    # What a store refuses or fails to remove now, a later command will.
    with suppress(StorageError):
        _clear_up(cache, done)


def _clear_up(cache: Path, done: Sequence[Manifest]) -> None:
    paths = [cache / name for name in entries(cache)]
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
    return bool(plans) and time.time() - _last_touch(paths) < _OLD_SECONDS


def _is_plan(path: Path) -> bool:
    return path.name.startswith("plan-")


def _last_touch(paths: list[Path]) -> float:
    """When any of the files was last written, those of plans included."""
    files = [path / name for path in paths if _is_plan(path) for name in entries(path)]
    # a folder in a store has no time of its own
    files += [path for path in paths if is_local(path) or not _is_plan(path)]
    return max((when for when in map(modified, files) if when is not None), default=0)


def _remove(path: Path) -> None:
    if not _is_plan(path):
        with suppress(OSError):
            remove(path)
    elif is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_folder(path)
