"""The steps of stage one: preferences -> tokens -> plan -> scores -> shards -> a sealed cache."""

import fnmatch
from pathlib import Path

from pydantic import ValidationError

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, ReflogpError, StorageError
from reflogp.data_schemas.files.storage import entries, require_space
from reflogp.data_schemas.manifest import Manifest, missing_files
from reflogp.stages.cache.leftovers import clear_up
from reflogp.stages.model.causal_lm import require_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import quantization, untrainable
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.make_plan import Plan, find_plan, make_plan
from reflogp.stages.precompute.score.engines.choose import Choice
from reflogp.stages.precompute.score.finished import step_aside, take_stock
from reflogp.stages.precompute.score.local import score
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.precompute.share_and_actors import share
from reflogp.stages.progress import Console

_LEAST_SHARE = 0.25  # least size of a finished, compressed shard as a share of the planned one's


def precompute(job: Job, console: Console) -> Manifest | None:
    """Score every response of the data, or a share of them, and seal the cache once it is complete.

    An already sealed cache in the folder stays intact until the new one is sealed.

    Returns:
        The manifest, or None if other jobs have not finished their shares.

    Raises:
        InputError: the data or the model cannot be used, or no row is left to score.
        ReflogpError: the engine does not start, or its log-probs are not those of the model.
    """
    try:
        return _precompute(job, console)
    except StorageError:
        raise
    except (ReflogpError, FileNotFoundError):
        # another job with the same work can have sealed the cache and removed the plan
        sealed = _sealed(job)
        if sealed is None:
            raise
        console.say(f"{job.config.cache} was sealed by another job")
        clear_up(job.config.cache, console, sealed)  # files that this job wrote after that
        return sealed


def _precompute(job: Job, console: Console) -> Manifest | None:
    require_causal_lm(job.reference.folder, trusted=job.reference.trusted)
    if kind := quantization(job.reference.folder):
        console.warn(untrainable(kind))
    plan = make_plan(job, console)
    mine = plan.shards if job.config.share is None else share(job.config.share).pick(plan.shards)
    if job.config.overwrite:
        step_aside(job, plan.shards)
    found = take_stock(job, mine)
    for name, problem in found.strange.items():
        console.warn(f"{name} {problem}; it will be scored again")
    if found.finished:
        done = sum(one.planned.tokens for one in found.finished)
        left = sum(planned.tokens for planned in found.missing)
        console.say(
            f"{len(found.finished)} of {len(mine)} shards are finished from an earlier run "
            f"({done:,} tokens); {len(found.missing)} are left ({left:,} tokens)"
        )
    console.say(f"engine: {job.engine.name} {job.engine.version} ({job.engine.why})")
    if found.missing:
        planned = sum(plan.record.shards[shard.number].bytes for shard in found.missing)
        what = f"the rest of the cache ({len(found.missing)} shards)"
        require_space(job.config.cache, int(_LEAST_SHARE * planned), what)
        score(job, found.missing, _scored_rows(job, plan, console), console)
    if job.config.share is not None and not _all_there(job, plan, console):
        return None
    return seal(job, plan, console)


def _scored_rows(job: Job, plan: Plan, console: Console) -> ScoredRows:
    """Return the scored rows of other plans; within one plan, no row occurs twice."""
    planned = frozenset(job.shard_path(shard.number).name for shard in plan.shards)
    known = ScoredRows(job.config.cache, job.inputs.scoring_digest(), without=planned)
    if len(known):
        console.say(f"{len(known):,} scored rows of an earlier cache are available for reuse")
    return known


def merge(cache: Path, console: Console, *, trusted: bool = False) -> Manifest:
    """Seal a cache whose shards several jobs made. A sealed cache stays unchanged.

    Raises:
        InputError: the folder has no plan, or more than one.
        ReflogpError: shards are missing, foreign, duplicated or damaged.
    """
    names = sorted(fnmatch.filter(entries(cache), "plan-????????"))
    plans = [plan for name in names if (plan := find_plan(cache / name))]
    if not plans and manifests.is_sealed(cache):
        console.say(f"{cache} is sealed already")
        sealed = manifests.read(cache)
        clear_up(cache, console)
        return sealed
    if len(plans) != 1:
        found = ", ".join(plan.folder.name for plan in plans) or "none"
        raise InputError(
            f"{cache}: sealing needs one complete plan in the folder, but it has {found}. Run "
            "`reflogp precompute`, and remove plans that you no longer need."
        )
    record = plans[0].record
    settings = record.config | {"cache": cache}
    settings.pop("shard", None)  # plans of earlier versions record the share of their job
    try:
        config = PrecomputeConfig.model_validate(settings)
        engine = Choice(**record.engine)  # type: ignore[arg-type]
    except (ValidationError, TypeError) as error:
        raise InputError(
            f"{plans[0].folder}: reflogp {record.reflogp_version} made the plan with settings that "
            "this version does not know. Install that version, or run `reflogp precompute` again."
        ) from error
    adapter = None if record.adapter is None else Path(record.adapter)
    reference = Checkpoint(Path(record.reference), adapter, record.dtype, trusted)
    job = Job(config, reference, engine, record.inputs)
    gone = [str(place) for place in (reference.folder, adapter) if place and not place.is_dir()]
    if config.verify_sample and gone:
        raise ReflogpError(
            f"{gone[0]}: the reference is not on this machine, so no rows can be verified before "
            "the seal. Run `reflogp merge` on a machine that has it."
        )
    return seal(job, plans[0], console)


def _sealed(job: Job) -> Manifest | None:
    """Return the manifest in the job's cache, if it is complete and has the job's inputs."""
    try:
        manifest = manifests.read(job.config.cache)
    except InputError:
        return None
    whole = not missing_files(job.config.cache, manifest)
    return manifest if whole and manifest.inputs == job.inputs else None


def _all_there(job: Job, plan: Plan, console: Console) -> bool:
    missing = take_stock(job, plan.shards).missing
    if missing:
        console.say(
            f"share {job.config.share} is done; {len(missing)} of {len(plan.shards)} shards are "
            "left to other jobs. The last job to finish seals the cache, as does `reflogp merge`."
        )
    return not missing
