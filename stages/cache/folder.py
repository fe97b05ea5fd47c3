"""The output folder of a cache: whose it is, and what it contains before the cache is written.

The folder can hold hours of scoring. An unreadable cache (damaged, or of another version of
reflogp) therefore never counts as absent, and unsealed scored rows stay. The folder's mark lists
in advance, by the digest of their inputs, what can be removed once the new cache is sealed.
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
_FIELDS = (b'"reflogp_version"', b'"scoring_seconds"')  # a flipped byte damages at most one
_FILTERED = re.compile(rb'"filtered":\s*\{')


@dataclass(frozen=True)
class Standing:
    """What a folder contains before a cache is written to it.

    Attributes:
        sealed: the manifest, if it can be read.
        unreadable: why the manifest cannot be read; None if it can, or if there is none.
        filtered: whether the sealed cache is a filtered one.
        known: short digests of the sealed cache and of what can be removed after the next seal.
    """

    sealed: Manifest | None
    unreadable: InputError | None
    filtered: bool
    known: set[str]


@dataclass(frozen=True)
class Work:
    """Finished work of a cache that is not sealed yet."""

    shards: int = 0
    rows: int = 0


def short(inputs: Inputs) -> str:
    """Return the part of the inputs' digest that appears in a cache's file names."""
    return inputs.digest()[:8]


def stand(cache: Path, option: str, *, overwrite: bool) -> Standing:
    """Examine a folder before a cache is written to it.

    Args:
        cache: the folder.
        option: the option that named the folder, for messages.
        overwrite: whether an unreadable cache, or a result of another kind, can be replaced once
            the new cache is sealed.

    Raises:
        InputError: the content is not reflogp's, or must not be replaced.
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
            f"{option} {cache}: the cache there cannot be read, so it is not replaced. {unreadable}"
        )
    filtered = bool(_FILTERED.search(content)) if sealed is None else sealed.filtered is not None
    known = _digests(content) | set(mark.replaced if mark else ())
    return Standing(sealed, unreadable, filtered, known)


def claim(cache: Path, digest: str, *, overwrite: bool = False, lasting: bool = True) -> None:
    """Mark the folder as a cache's, before the first file is written and again before the seal.

    The cache that is sealed there now can be removed once one with other inputs is sealed.

    Args:
        cache: the folder.
        digest: short digest of the new cache's inputs.
        overwrite: whether unsealed rows of other inputs can also be removed then.
        lasting: False if the new cache's files can be rebuilt without scoring, so they too can be
            removed once another cache is sealed.
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
    """Record in the folder's mark that the files of a digest can be removed after the seal."""
    mark = read_mark(cache)
    if mark is not None and digest not in mark.replaced:
        write_mark(cache, mark.model_copy(update={"replaced": sorted([*mark.replaced, digest])}))


def unsealed(cache: Path, without: Collection[str] = ()) -> dict[str, Work]:
    """Return the unsealed plans and scored rows in a folder, by the short digest of their inputs.

    File names alone prove nothing: shards are identified by their origin, plans by their record.
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
    """Return the manifest or the reason why it is unreadable, and its bytes if it exists."""
    path = cache / manifests.FILE_NAME
    if path.name not in entries(cache):
        return None, None, b""
    try:
        content = read_bytes(path)
    except FileNotFoundError:  # removed since the listing
        return None, None, b""
    except IsADirectoryError:
        return None, InputError(f"{path} is a folder."), b"{}"
    try:
        return manifests.read(cache), None, content
    except InputError as error:
        return None, error, content


def _digests(manifest: bytes) -> set[str]:
    """Return the short digests in a manifest's shard names, even if the manifest is damaged."""
    return {found.decode() for found in _LISTED.findall(manifest)}


def _is_json(content: bytes) -> bool:
    try:
        from_json(content)
    except ValueError:
        return False
    return True
