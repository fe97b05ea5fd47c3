"""The folder that a cache is written to: whose it is, and what stands in it already.

Hours of scoring can stand there. So a cache that cannot be read (damaged, or of another version of
reflogp) is never taken for none, scored rows that were never sealed are left alone, and what may go
once a new cache is sealed stands in the folder's mark beforehand, by the digest of its inputs.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import Mark, read_mark, require_output, write_mark
from reflogp.data_schemas.files.storage import at_once, entries, read_bytes
from reflogp.data_schemas.manifest import Inputs, Manifest
from reflogp.data_schemas.shard_origin import read_origin

SHARD = re.compile(r"shard-([0-9a-f]{8})-\d{5,}\.parquet")
PLAN = re.compile(r"plan-([0-9a-f]{8})")
_LISTED = re.compile(rb'"shard-([0-9a-f]{8})-\d{5,}\.parquet"')
_FIELDS = (b'"reflogp_version"', b'"scoring_seconds"')  # one of them outlives a flipped byte
_FILTERED = re.compile(rb'"filtered":\s*\{')


@dataclass(frozen=True)
class Standing:
    """What stands in a folder.

    Attributes:
        sealed: the manifest of the cache there, if it can be read.
        unreadable: why it cannot; None where it can, or where there is none.
        filtered: whether that cache is a filtered one.
        known: short digests of what is sealed there, and of what may go once a cache is.
    """

    sealed: Manifest | None
    unreadable: InputError | None
    filtered: bool
    known: set[str]


@dataclass(frozen=True)
class Work:
    """What a command that has not sealed its cache yet, has finished."""

    shards: int = 0
    rows: int = 0


def short(inputs: Inputs) -> str:
    """The part of the inputs' digest that the names of a cache's files carry."""
    return inputs.digest()[:8]


def stand(cache: Path, option: str, *, overwrite: bool) -> Standing:
    """See what stands in a folder before a cache is written to it.

    Args:
        cache: the folder.
        option: under which it was given, for messages.
        overwrite: whether a cache that cannot be read, or a result of another kind, may be
            replaced once the new cache is sealed.

    Raises:
        InputError: what is there is not reflogp's, or it may not be replaced.
    """
    sealed, unreadable, content = _manifest(cache)
    ours = any(field in content for field in _FIELDS)
    unmarked = ours or (read_mark(cache) is None and bool(unsealed(cache)))
    mark = require_output(cache, "cache", option=option, overwrite=overwrite, unmarked=unmarked)
    if unreadable is not None and not (ours or (mark is not None and not _is_json(content))):
        raise InputError(
            f"{option} {cache}: its {manifests.FILE_NAME} is not reflogp's. Give another folder."
        )
    if unreadable is not None and not overwrite:
        raise InputError(
            f"{option} {cache}: the cache there cannot be read, and is not replaced. {unreadable}"
        )
    filtered = bool(_FILTERED.search(content)) if sealed is None else sealed.filtered is not None
    known = _digests(content) | set(mark.replaced if mark else ())
    return Standing(sealed, unreadable, filtered, known)


def claim(cache: Path, digest: str, *, overwrite: bool = False, lasting: bool = True) -> None:
    """Mark the folder as a cache's; called before the first file of it, and before it is sealed.

    What is sealed there now may go once a cache of other inputs is sealed in its place.

    Args:
        cache: the folder.
        digest: short, of the inputs of the cache that is being made.
        overwrite: whether rows of other inputs that were never sealed may then go, too.
        lasting: False where its files are made again without scoring, so that they may go in any
            case once another cache is sealed.
    """
    mark = read_mark(cache)
    content = _manifest(cache)[2]
    replaced = {*(mark.replaced if mark else ()), *_digests(content)}
    if overwrite:
        replaced |= unsealed(cache, without={digest}).keys()
    replaced = replaced - {digest} if lasting else replaced | {digest}
    earlier = mark or Mark(kind="cache")
    wanted = earlier.model_copy(update={"kind": "cache", "replaced": sorted(replaced)})
    if wanted != mark:
        write_mark(cache, wanted)


def replaceable(cache: Path, digest: str) -> None:
    """Say in the folder's mark that the files of a digest may go once the cache is sealed."""
    mark = read_mark(cache)
    if mark is not None and digest not in mark.replaced:
        write_mark(cache, mark.model_copy(update={"replaced": sorted([*mark.replaced, digest])}))


def unsealed(cache: Path, without: Collection[str] = ()) -> dict[str, Work]:
    """Plans and scored rows in a folder, by the short digest of their inputs.

    A name alone proves nothing: a shard counts by the origin in it, a plan by its record.
    """
    names = [name for name in sorted(entries(cache)) if not _of(name, without)]
    shards = [(found[1], cache / name) for name in names if (found := SHARD.fullmatch(name))]
    plans = [(found[1], cache / name) for name in names if (found := PLAN.fullmatch(name))]
    work: dict[str, Work] = {}
    for digest, folder in plans:
        record = plan_record.read(folder)
        if record is not None and short(record.inputs) == digest:
            work[digest] = Work()
    origins = at_once(read_origin, [path for _, path in shards])
    for (digest, _), origin in zip(shards, origins, strict=True):
        if origin is not None and origin[0].inputs.startswith(digest):
            before = work.get(digest, Work())
            work[digest] = Work(before.shards + 1, before.rows + origin[1])
    return work


def _of(name: str, digests: Collection[str]) -> bool:
    found = SHARD.fullmatch(name) or PLAN.fullmatch(name)
    return found is not None and found[1] in digests


def _manifest(cache: Path) -> tuple[Manifest | None, InputError | None, bytes]:
    """The manifest there, or else why it cannot be read; and its bytes, none if there is none."""
    path = cache / manifests.FILE_NAME
    if path.name not in entries(cache):
        return None, None, b""
    try:
        content = read_bytes(path)
    except FileNotFoundError:  # gone by now
        return None, None, b""
    except IsADirectoryError:
        return None, InputError(f"{path} is a folder."), b"{}"
    try:
        return manifests.read(cache), None, content
    except InputError as error:
        return None, error, content


def _digests(manifest: bytes) -> set[str]:
    """Short digests in the names of the shards that a manifest lists, whether it reads or not."""
    return {found.decode() for found in _LISTED.findall(manifest)}


def _is_json(content: bytes) -> bool:
    try:
        from_json(content)
    except ValueError:
        return False
    return True
