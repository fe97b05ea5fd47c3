"""Finds the planned shards that are finished, and files that do not belong to the plan.

A finished shard is a file with the planned name, whose origin names this plan and whose number of
rows is the planned one. Files are written atomically, so the shards of a killed run, or of another
job, are usable.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from reflogp.data_schemas.files.storage import at_once, entries, rename
from reflogp.data_schemas.shard_origin import Origin, read_origin
from reflogp.stages.cache.folder import SHARD, replaceable, short
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard


@dataclass(frozen=True)
class Finished:
    """A finished shard."""

    planned: PlannedShard
    origin: Origin
    rows: int


@dataclass(frozen=True)
class Stock:
    """The state of planned shards: each is finished or missing.

    Attributes:
        finished: shards whose file is valid.
        missing: the other shards.
        strange: why a file with a planned name is not the planned shard, by file name.
    """

    finished: list[Finished]
    missing: list[PlannedShard]
    strange: dict[str, str]


def take_stock(job: Job, planned: Iterable[PlannedShard]) -> Stock:
    """Look for finished shards in the job's cache. This reads only their footers."""
    names = file_names(job)
    found = Stock([], [], {})
    shards = list(planned)
    paths = [job.shard_path(shard.number) for shard in shards]
    origins = at_once(lambda path: read_origin(path) if path.name in names else None, paths)
    for shard, path, read in zip(shards, paths, origins, strict=True):
        if path.name not in names:
            found.missing.append(shard)
            continue
        problem = _problem(job, shard, read)
        if problem is None and read is not None:
            found.finished.append(Finished(shard, *read))
        else:
            found.missing.append(shard)
            found.strange[path.name] = problem or ""
    return found


def foreign(job: Job, planned: Iterable[PlannedShard]) -> list[str]:
    """Names of shards that are named after this job but are not in the plan."""
    ours = {job.shard_path(shard.number).name for shard in planned}
    digest = short(job.inputs)
    found = [(name, SHARD.fullmatch(name)) for name in file_names(job)]
    return sorted(name for name, its in found if its and its[1] == digest and name not in ours)


def step_aside(job: Job, planned: Iterable[PlannedShard]) -> None:
    """Rename shards with this job's inputs that were made from another plan.

    Such shards exist if a sealed cache is made again with a different --shard-tokens. The planned
    shards need their names, and their rows are reused until the new shards are complete.
    """
    shards = list(planned)
    others = [*take_stock(job, shards).strange, *foreign(job, shards)]
    aside = hashlib.sha256(f"aside from {job.inputs.digest()}".encode()).hexdigest()[:8]
    for name in others:
        path = job.config.cache / name
        origin = read_origin(path)
        if origin is not None and origin[0].inputs == job.inputs.digest():
            replaceable(job.config.cache, aside)
            rename(path, path.with_name(name.replace(short(job.inputs), aside)))


def file_names(job: Job) -> set[str]:
    """Names of all files in the cache."""
    return set(entries(job.config.cache))


def _problem(job: Job, shard: PlannedShard, read: tuple[Origin, int] | None) -> str | None:
    if read is None:
        return "is damaged or not a shard of this version"
    origin, rows = read
    if origin.inputs != job.inputs.digest():
        return "is foreign: it was made from other inputs"
    if origin.plan != shard.sha256:
        if origin.number != shard.number:
            return f"is a duplicate: it holds the rows of shard {origin.number:05d}"
        return "is foreign: it was made from another plan"
    if rows + len(origin.problems) != shard.rows:
        return f"is damaged: it holds {rows} of {shard.rows} rows"
    return None
