"""Finished shards -> a sealed cache. Any job can seal, from the cache's folder alone."""

from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.job_record import JobRecord
from reflogp.data_schemas.manifest import Counts, Engine, Manifest, Reference, Source, Timing
from reflogp.data_schemas.quarantine import Reason, batches
from reflogp.data_schemas.reading import locate
from reflogp.data_schemas.sealed_file import Shard
from reflogp.data_schemas.verification import Verification
from reflogp.stages.cache.folder import claim, short
from reflogp.stages.cache.integrity import examine
from reflogp.stages.cache.leftovers import clear_up
from reflogp.stages.cache.quarantine_file import Quarantine, RowFault
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.model.loading import hub_commit, quantization, vocabulary
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.make_plan import Plan
from reflogp.stages.precompute.plan.planned_shards import damaged, read_plan
from reflogp.stages.precompute.score.account import accounts
from reflogp.stages.precompute.score.finished import Finished, Stock, foreign, take_stock
from reflogp.stages.precompute.seal.rescore import too_large, verify
from reflogp.stages.progress import Console

_NAMED = 5  # files in one message


def seal(job: Job, plan: Plan, console: Console) -> Manifest:
    """Check that every planned shard exists and is valid, and write the manifest.

    Raises:
        ReflogpError: shards are missing, foreign, duplicated or damaged, or the log-probs are not
            those of the model.
    """
    found = take_stock(job, plan.shards)
    _require_complete(job, plan, found)
    shards = _checked(job, plan, found.finished, console)
    problems = sum(len(one.origin.problems) for one in found.finished)
    if not sum(shard.rows for shard in shards):
        raise ReflogpError(
            f"{job.engine.name} gave invalid log-probs, such as NaN, for every row. Give "
            "--engine transformers, or another --dtype."
        )
    quarantine = _quarantine(job, plan, found.finished)
    if problems:
        console.warn(quarantine.summary())
    if rescued := sum(one.origin.rescued for one in found.finished):
        console.warn(f"{rescued} responses had invalid log-probs and were fixed by rescoring")
    verification = _verify(job, shards, console)
    manifest = _manifest(job, plan, found.finished, shards, quarantine.reasons, verification)
    claim(job.config.cache, short(job.inputs))  # another cache can have been sealed meanwhile
    manifest = manifests.write(job.config.cache, manifest)
    clear_up(job.config.cache, console, manifest)
    return manifest


def _manifest(
    job: Job,
    plan: Plan,
    finished: list[Finished],
    shards: list[Shard],
    aside: Counter[str],
    verification: Verification | None,
) -> Manifest:
    config, record, jobs = job.config, plan.record, accounts(job)
    adapter = job.reference.adapter
    # an adapter can also be given as --reference
    named = adapter if adapter is not None and config.adapter is None else job.reference.folder
    return Manifest(
        reflogp_version=version("reflogp"),
        kind=record.kind,
        inputs=job.inputs,
        reference=Reference(
            name=config.reference,
            path=str(job.reference.folder),
            commit=hub_commit(named),
            adapter=config.adapter,
            adapter_path=None if adapter is None else str(adapter),
            adapter_commit=hub_commit(adapter if config.adapter else None),
            stop_token_ids=record.stop_token_ids,
            vocabulary=vocabulary(job.reference.folder),
            chat_template=config.chat_template,
            trust_remote_code=config.trust_remote_code,
        ),
        engine=_engine(job, finished),
        source=Source(
            source=config.data,
            commit=config.data_revision,
            config=config.data_config,
            split=config.split,
            form=record.form,
            rows=record.rows_read,
            reading=record.reading,
        ),
        rules=config.rules(),
        shards=shards,
        quarantine=describe(_quarantine_path(job), rows=aside.total(), tokens=0),
        counts=_counts(plan, finished, aside),
        timing=_timing(jobs),
        verification=verification,
        jobs=jobs,
    )


def _quarantine_path(job: Job) -> Path:
    return job.path("quarantine", ".parquet")


def _require_complete(job: Job, plan: Plan, found: Stock) -> None:
    strange = found.strange | dict.fromkeys(
        foreign(job, plan.shards), "is foreign: the plan has no such shard"
    )
    wrong = [f"{name} {problem}" for name, problem in sorted(strange.items())]
    names = [job.shard_path(planned.number).name for planned in found.missing]
    wrong += [f"{name} is missing" for name in names if name not in strange]
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ReflogpError(
            f"{job.config.cache}: the cache is not sealed: {'; '.join(wrong[:_NAMED])}{more}. "
            "Remove foreign files, and run `reflogp precompute` for missing ones."
        )


def _checked(job: Job, plan: Plan, finished: list[Finished], console: Console) -> list[Shard]:
    """Read and check every shard again, whoever wrote it, and return the manifest's entries."""
    with console.track("checking", len(finished), "shards") as advance:
        expected = [_expected(job, one) for one in finished]
        shards, wrong = examine(job.config.cache, expected, advance, _limits(job, plan))
    if wrong:
        raise ReflogpError(
            f"{job.config.cache}: the cache is not sealed: {'; '.join(wrong[:_NAMED])}. Delete "
            "the damaged files and run `reflogp precompute` again; the other shards are kept."
        )
    return shards


def _limits(job: Job, plan: Plan) -> Limits:
    """Return the limits for the rows, the same as readers of the cache will apply."""
    return Limits(
        kind=plan.record.kind,
        vocabulary=vocabulary(job.reference.folder) or Limits.vocabulary,
        max_length=job.config.max_length,
        source_rows=plan.record.rows_read,
        keep=job.config.keep,
        most_weight=None,
    )


def _expected(job: Job, one: Finished) -> Shard:
    """Return the entry that a shard should have, without its size and digest."""
    name = job.shard_path(one.planned.number).name
    return Shard(file=name, rows=one.rows, tokens=one.origin.tokens, bytes=0, sha256="")


def _quarantine(job: Job, plan: Plan, finished: list[Finished]) -> Quarantine:
    """Join the plan's quarantine and the rows with invalid scores, which keep their token ids."""
    planned = plan.folder / plan.record.quarantine.file
    parts = plan.record.reading.parts if plan.record.reading else []
    with Quarantine(_quarantine_path(job)) as quarantine:
        try:
            quarantine.take_over(
                batches(planned, plan.record.quarantine), plan.record.quarantined_by_reason
            )
        except InputError as error:
            raise damaged(planned) from error
        for one in finished:
            if not one.origin.problems:
                continue
            planned_rows = read_plan(one.planned)
            wrong = pa.array([problem.row_id for problem in one.origin.problems])
            those = planned_rows.filter(pc.is_in(planned_rows.column("row_id"), wrong))
            rows = {row["row_id"]: row for row in those.to_pylist()}
            for problem in one.origin.problems:
                file, line = locate(parts, problem.source_row, job.config.data)
                quarantine.add(
                    RowFault(Reason.BAD_SCORE, problem.field, problem.detail),
                    source_row=problem.source_row,
                    file=file,
                    line=line,
                    row=rows[problem.row_id],
                )
    return quarantine


def _engine(job: Job, finished: list[Finished]) -> Engine:
    ways = Counter((one.origin.method, one.origin.device) for one in finished)
    method, device = ways.most_common(1)[0][0]
    return Engine(
        name=job.engine.name,
        version=job.engine.version,
        method=method,
        dtype=job.reference.dtype,
        device=device,
        settings=job.config.engine_settings(),
        why=job.engine.why,
    )


def _counts(plan: Plan, finished: list[Finished], aside: Counter[str]) -> Counts:
    origins = [one.origin for one in finished]
    return Counts(
        rows=sum(one.rows for one in finished),
        prompt_tokens=sum(origin.prompt_tokens for origin in origins),
        chosen_tokens=sum(origin.chosen_tokens for origin in origins),
        rejected_tokens=sum(origin.rejected_tokens for origin in origins),
        kl_tokens=sum(origin.kl_tokens for origin in origins),
        context_tokens=sum(origin.context_tokens for origin in origins),
        truncated=sum(origin.truncated for origin in origins),
        rescued=sum(origin.rescued for origin in origins),
        template_diverged=plan.record.template_diverged,
        quarantined_by_reason=dict(aside.most_common()),
    )


def _timing(jobs: list[JobRecord]) -> Timing:
    now = datetime.now(UTC)
    scoring = sum(job.scoring_seconds for job in jobs)
    return Timing(
        started_at=min((job.started_at for job in jobs), default=now),
        sealed_at=now,
        seconds=sum(job.seconds for job in jobs),
        scoring_seconds=scoring,
        tokens_per_second=sum(job.scored_tokens for job in jobs) / scoring if scoring else 0,
    )


def _verify(job: Job, shards: list[Shard], console: Console) -> Verification | None:
    """Rescore a few rows before the seal, because wrong log-probs are worse than no cache.

    Raises:
        ReflogpError: the engine's log-probs are not those of the checkpoint.
    """
    config = job.config
    if not config.verify_sample:
        return None
    if obstacle := too_large(job.reference.folder):
        console.warn(f"no rows are verified: {obstacle}")
        return None
    try:
        found = verify(config.cache, shards, job.reference, config.verify_sample, console)
    except (ReflogpError, RuntimeError) as error:  # RuntimeError: a missing kernel
        if (kind := quantization(job.reference.folder)) is None:
            raise
        console.warn(f"no rows are verified: transformers cannot run this {kind} model: {error}")
        return None
    if not found.passed:
        raise ReflogpError(_disagreement(job, found))
    console.say(f"verified: {found.summary()}")
    return found


def _disagreement(job: Job, found: Verification) -> str:
    """Describe the disagreement, and how to find out which of the two forwards is wrong."""
    other = "transformers" if job.engine.name == "vllm" else "vllm"
    return (
        f"the cache is not sealed: the log-probs of {job.engine.name} {job.engine.version} and of "
        f"a plain float32 forward of {job.reference.folder} do not agree: "
        f"{'; '.join(found.reasons)} ({found.summary()}). Either of the two can be wrong. "
        f"To find out, run the same command with --engine {other} and another --cache, which "
        f"is compared with the same forward: if that cache is sealed, {job.engine.name} is wrong; "
        "if not, check the checkpoint and the versions of transformers and vLLM. The scored "
        "shards are kept."
    )
