"""Removal of leftovers from a cache's folder once the cache is sealed.

A file is removed only if its name has exactly the form that reflogp uses, with the digest of the
sealed cache or of one that the folder's mark lists as replaced. Because a killed job can leave
files behind, every later command that finds the cache sealed clears up again.
"""

import re
from collections import deque
from contextlib import suppress
from pathlib import Path

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, StorageError
from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.ownership import HALF_MARK, read_mark, remove_owned, write_mark
from reflogp.data_schemas.files.storage import at_once, entries, remove, remove_if_empty
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.folder import PLAN, SHARD, short, unsealed
from reflogp.stages.progress import Console

_QUARANTINE = re.compile(r"quarantine-([0-9a-f]{8})\.parquet")
_JOB = re.compile(r"job-([0-9a-f]{8})-[0-9a-f]{12}\.json")
_TEMPORARY = re.compile(
    r"\.(?:shard-([0-9a-f]{8})-\d{5,}\.parquet|quarantine-([0-9a-f]{8})\.parquet"
    r"|job-([0-9a-f]{8})-[0-9a-f]{12}\.json|manifest-([0-9a-f]{8})\.json)\.[0-9a-f]{12}\.tmp"
)
_PLANNED = r"plan\.json|plan-\d{5,}\.arrow|quarantine\.parquet"
_OF_A_PLAN = re.compile(rf"{_PLANNED}|\.(?:{_PLANNED})\.[0-9a-f]{{12}}\.tmp")


def clear_up(cache: Path, console: Console, *done: Manifest) -> None:
    """Remove the files that the sealed cache replaced, and its own temporary files.

    Args:
        cache: the folder.
        console: told about scored rows that stay because they were never sealed.
        done: manifests sealed in this folder that no job works on any more.
    """
    # a later command removes what the disk or the store fails to remove now
    with suppress(StorageError, OSError, InputError):
        _clear_up(cache, console, {short(manifest.inputs) for manifest in done})


def _clear_up(cache: Path, console: Console, done: set[str]) -> None:
    names = list(entries(cache))
    sealed = manifests.read(cache)
    mark = read_mark(cache)
    own = short(sealed.inputs)
    replaced = set(mark.replaced) - {own} if mark else set()
    kept = {manifests.FILE_NAME, *(shard.file for shard in [*sealed.shards, sealed.quarantine])}
    for name in names:
        if name not in kept and _goes(name, replaced, {*done, own}):
            with suppress(OSError):
                _remove(cache / name)
    left = any(SHARD.fullmatch(name) and _goes(name, replaced, set()) for name in entries(cache))
    if mark and (mark.files or mark.replaced) and not left:
        if is_local(cache):
            remove_owned(cache, set(mark.files) - kept)
        write_mark(cache, mark.model_copy(update={"files": [], "replaced": []}))
    work = unsealed(cache, without={own}).values()
    if shards := sum(one.shards for one in work):
        console.say(
            f"{cache}: the folder also has {shards} shard{'s' * (shards > 1)} "
            f"({sum(one.rows for one in work):,} rows) of an unsealed cache with other inputs. "
            "Run the command that made them to finish that cache, or this precompute with "
            "--overwrite to remove them."
        )


def _goes(name: str, replaced: set[str], finished: set[str]) -> bool:
    if HALF_MARK.fullmatch(name):
        return True
    if found := (SHARD.fullmatch(name) or _QUARANTINE.fullmatch(name)):
        return found[1] in replaced
    found = PLAN.fullmatch(name) or _JOB.fullmatch(name) or _TEMPORARY.fullmatch(name)
    return found is not None and next(filter(None, found.groups())) in replaced | finished


def _remove(path: Path) -> None:
    """Remove a file, or the plan's own files from a plan folder: a user's files in it stay."""
    if not PLAN.fullmatch(path.name):
        remove(path)
    elif not (is_local(path) and path.is_symlink()):
        planned = [path / name for name in entries(path) if _OF_A_PLAN.fullmatch(name)]
        deque(at_once(remove, planned), maxlen=0)
        remove_if_empty(path)
