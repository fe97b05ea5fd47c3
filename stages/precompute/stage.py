"""Stage one, joined: preferences -> tokens -> plan -> scores -> shards -> a sealed cache."""

import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from data_schemas import manifest as manifests
from data_schemas.errors import InputError, ReflogpError
from data_schemas.manifest import Counts, Engine, Manifest, Reference, Shard, Source, Timing
from data_schemas.quarantine import Reason
from data_schemas.verification import Verification
from stages.loading import loading
from stages.precompute.config import PrecomputeConfig
from stages.precompute.faults import RowFault
from stages.precompute.job import Job
from stages.precompute.plan import PlannedShard, read_plan, write_plan
from stages.precompute.quarantine import Quarantine
from stages.precompute.rows import Rows
from stages.precompute.scoring import Scored, score
from stages.precompute.shards import describe
from stages.precompute.tokenize import Tokenizer, TokenRules, stop_ids
from stages.progress import Console
from stages.verify.stage import too_large, verify


def precompute(job: Job, console: Console) -> Manifest:
    """Score every response of the data and seal the cache.

    A sealed cache that is in the folder already stays whole until the new one is sealed.

    Raises:
        InputError: the data or the model cannot be used, or no row is left to score.
        ReflogpError: the engine does not start, or gives log-probs that are not the model's.
    """
    started_at, begin = datetime.now(UTC), time.monotonic()
    tokenizer, stops = load_tokenizer(job.reference, job.config)
    quarantine_path = job.path("quarantine", ".parquet")
    with Quarantine(quarantine_path) as quarantine:
        rows = Rows(job.config, quarantine)
        plan = _plan(job, rows, tokenizer, quarantine, console)
        console.say(f"engine: {job.engine.name} {job.engine.version} ({job.engine.why})")
        scored = score(job, plan, console)
        _set_aside(scored, plan, quarantine, job.config.data)
    if quarantine.reasons:
        console.warn(quarantine.summary())
    shards = [found.shard for found in scored.shards]
    if not sum(shard.rows for shard in shards):
        raise ReflogpError(
            f"{job.engine.name} gave no row log-probs that can be right, such as NaN throughout. "
            "Give --engine transformers, or another --dtype."
        )
    verification = _verify(job, shards, console)
    tokens: Counter[str] = Counter()
    for found in scored.shards:
        tokens.update(found.tokens)
    manifest = Manifest(
        reflogp_version=version("reflogp"),
        kind="paired" if rows.form.paired else "unpaired",
        inputs=job.inputs,
        reference=Reference(
            name=job.config.reference, path=str(job.reference), stop_token_ids=stops
        ),
        engine=Engine(
            name=job.engine.name,
            version=job.engine.version,
            method=scored.method,
            dtype=job.dtype,
            device=scored.device,
            settings=job.config.engine_settings(),
            why=job.engine.why,
        ),
        source=Source(
            source=job.config.data, split=job.config.split, form=rows.form.name, rows=rows.read
        ),
        rules=job.config.rules(),
        shards=shards,
        quarantine=describe(quarantine_path, rows=quarantine.reasons.total(), tokens=0),
        counts=Counts(
            rows=sum(shard.rows for shard in shards),
            prompt_tokens=tokens["prompt_ids"],
            chosen_tokens=tokens["chosen_ids"],
            rejected_tokens=tokens["rejected_ids"],
            truncated=sum(found.truncated for found in scored.shards),
            template_diverged=tokenizer.template_diverged,
            quarantined_by_reason=dict(quarantine.reasons.most_common()),
        ),
        timing=Timing(
            started_at=started_at,
            seconds=time.monotonic() - begin,
            scoring_seconds=scored.seconds,
            tokens_per_second=scored.tokens / scored.seconds,
        ),
        verification=verification,
        machine=f"{platform.node()} ({platform.system()} {platform.machine()})",
        command=sys.argv,
    )
    manifests.write(job.config.cache, manifest)
    _remove_leftovers(job, manifest)
    return manifest


def load_tokenizer(reference: Path, config: PrecomputeConfig) -> tuple[Tokenizer, list[int]]:
    """The checkpoint's tokenizer under the rules of `config`, and its stop ids.

    Raises:
        InputError: they cannot be loaded, or the model was built for less than `max_length`.
    """
    with loading("tokenizer or config", reference):
        model_config = AutoConfig.from_pretrained(reference).get_text_config()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(reference)
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise InputError(
            f"--max-length {config.max_length} is over the {limit} positions of the model in "
            f"{reference}. Give at most {limit}."
        )
    stops = stop_ids(tokenizer, reference)
    rules = TokenRules(config.max_length, config.truncate, frozenset(stops))
    return Tokenizer(tokenizer, rules), stops


def _plan(
    job: Job, rows: Rows, tokenizer: Tokenizer, quarantine: Quarantine, console: Console
) -> list[PlannedShard]:
    with console.track("tokenizing", None, "rows") as advance:
        tokenized = rows.tokenized(tokenizer, advance)
        plan = write_plan(tokenized, job.path("plan"), job.config.shard_tokens)
    if not plan:
        raise InputError(
            f"{job.config.data}: not one of {rows.read} rows can be used: {quarantine.summary()}. "
            "Mend the data, or the options that name its columns and limits."
        )
    total = sum(shard.rows for shard in plan)
    tokens = sum(shard.tokens for shard in plan)
    console.say(
        f"{job.config.data}: {total:,} rows ({rows.form.name}), {tokens:,} tokens to score in "
        f"{len(plan)} shard{'s' * (len(plan) > 1)}"
    )
    return plan


def _set_aside(
    scored: Scored, plan: list[PlannedShard], quarantine: Quarantine, source: str
) -> None:
    """Quarantine the rows whose scores cannot be right, with their token ids."""
    for found in scored.shards:
        if not found.problems:
            continue
        rows = {row["source_row"]: row for row in read_plan(plan[found.number]).to_pylist()}
        for number, problem in found.problems:
            fault = RowFault(Reason.BAD_SCORE, f"{problem.partition(':')[0]}_ids", problem)
            quarantine.add(fault, source_row=number, file=source, line=number + 1, row=rows[number])


def _verify(job: Job, shards: list[Shard], console: Console) -> Verification | None:
    """Rescore a few rows before the seal: a wrong log-prob is worse than no cache.

    Raises:
        ReflogpError: the engine's log-probs are not those of the checkpoint.
    """
    config = job.config
    if not config.verify_sample:
        return None
    if obstacle := too_large(job.reference):
        console.warn(f"no rows are verified: {obstacle}")
        return None
    found = verify(config.cache, shards, job.reference, job.dtype, config.verify_sample, console)
    if not found.passed:
        raise ReflogpError(
            f"the cache is not sealed: {job.engine.name} and a forward pass of {job.reference} do "
            f"not agree: {'; '.join(found.reasons)}. Score with --engine transformers, or "
            "pass --verify-sample 0 to seal the cache as it is."
        )
    console.say(f"verified: {found.summary()}")
    return found


def _remove_leftovers(job: Job, manifest: Manifest) -> None:
    """Remove plans, and the files of an earlier cache that the new seal has replaced."""
    for plan in job.config.cache.glob("plan-????????"):
        shutil.rmtree(plan, ignore_errors=True)
    kept = {shard.file for shard in [*manifest.shards, manifest.quarantine]}
    for path in _ours(job.config.cache):
        if path.name not in kept:
            path.unlink()


def _ours(cache: Path) -> Iterable[Path]:
    yield from cache.glob("shard-????????-?????.parquet")
    yield from cache.glob("quarantine-????????.parquet")
