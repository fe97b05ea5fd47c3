"""Stage one, joined: preferences -> tokens -> plan -> scores -> shards -> a sealed cache."""

import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow.compute as pc
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from data_schemas import manifest as manifests
from data_schemas.errors import InputError, ReflogpError
from data_schemas.manifest import Counts, Engine, Inputs, Manifest, Reference, Shard, Source, Timing
from data_schemas.verification import Verification
from stages.precompute.config import PrecomputeConfig
from stages.precompute.plan import PlannedShard, read_plan, write_plan
from stages.precompute.quarantine import Quarantine
from stages.precompute.rows import Rows
from stages.precompute.scorers.choose import Choice, start
from stages.precompute.scorers.protocol import Scorer
from stages.precompute.shards import describe, score_table, token_counts, write_shard
from stages.precompute.tokenize import Tokenizer, TokenRules, stop_ids
from stages.progress import Console
from stages.verify.stage import too_large, verify


@dataclass(frozen=True)
class Job:
    """Stage one with everything resolved.

    Attributes:
        config: what the user set.
        reference: folder of the checkpoint.
        dtype: of weights and forward, never `auto`.
        engine: the engine that runs.
        inputs: digests of all that the log-probs depend on.
    """

    config: PrecomputeConfig
    reference: Path
    dtype: manifests.Dtype
    engine: Choice
    inputs: Inputs

    def path(self, stem: str, ending: str = "") -> Path:
        """A path in the cache that no earlier job with other inputs has used."""
        return self.config.cache / f"{stem}-{self.inputs.digest()[:8]}{ending}"


@dataclass
class _Scored:
    """What scoring has made so far."""

    shards: list[Shard] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    seconds: float = 0.0


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
        scorer = start(job.engine, job.reference, job.dtype, job.config)
        try:
            scored = _score(job, plan, scorer, quarantine, console)
        finally:
            scorer.close()
    if quarantine.reasons:
        console.warn(quarantine.summary())
    verification = _verify(job, scored.shards, console)
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
            dtype=job.dtype,
            device=scorer.device,
            settings=job.config.engine_args,
            why=job.engine.why,
        ),
        source=Source(
            source=job.config.data, split=job.config.split, form=rows.form.name, rows=rows.read
        ),
        rules=job.config.rules(),
        shards=scored.shards,
        quarantine=describe(quarantine_path, rows=quarantine.reasons.total(), tokens=0),
        counts=Counts(
            rows=sum(shard.rows for shard in scored.shards),
            prompt_tokens=scored.tokens["prompt_ids"],
            chosen_tokens=scored.tokens["chosen_ids"],
            rejected_tokens=scored.tokens["rejected_ids"],
            truncated=scored.truncated,
            template_diverged=tokenizer.template_diverged,
            quarantined_by_reason=dict(quarantine.reasons.most_common()),
        ),
        timing=Timing(
            started_at=started_at,
            seconds=time.monotonic() - begin,
            scoring_seconds=scored.seconds,
            tokens_per_second=sum(shard.tokens for shard in plan) / scored.seconds,
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
        InputError: `max_length` is more than the model was built for.
    """
    model_config = AutoConfig.from_pretrained(reference).get_text_config()
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise InputError(
            f"--max-length {config.max_length} is over the {limit} positions of the model in "
            f"{reference}. Give at most {limit}."
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(reference)
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


def _score(
    job: Job,
    plan: list[PlannedShard],
    scorer: Scorer,
    quarantine: Quarantine,
    console: Console,
) -> _Scored:
    scored = _Scored()
    begin = time.monotonic()
    with console.track("scoring", sum(shard.tokens for shard in plan), "tokens") as advance:
        for number, planned in enumerate(plan):
            table, faulty = score_table(read_plan(planned), scorer, advance)
            for source_row, fault in faulty:
                quarantine.add(
                    fault, source_row=source_row, file=job.config.data, line=source_row + 1, row={}
                )
            scored.shards.append(write_shard(table, job.path("shard", f"-{number:05d}.parquet")))
            scored.tokens.update(token_counts([table]))
            cut = (table.column(f"{name}_truncated") for name in ("prompt", "chosen", "rejected"))
            prompt, chosen, rejected = cut
            scored.truncated += pc.sum(pc.or_(pc.or_(prompt, chosen), rejected)).as_py() or 0
    scored.seconds = time.monotonic() - begin
    return scored


def _verify(job: Job, shards: list[Shard], console: Console) -> Verification | None:
    """Rescore a few rows before the seal: a wrong log-prob is worse than no cache.

    Raises:
        ReflogpError: the engine's log-probs are not those of the checkpoint.
    """
    if not job.config.verify_sample:
        return None
    if obstacle := too_large(job.reference):
        console.warn(f"no rows are verified: {obstacle}")
        return None
    verification = verify(
        job.config.cache, shards, job.reference, job.dtype, job.config.verify_sample, console
    )
    if not verification.passed:
        raise ReflogpError(
            f"the cache is not sealed: {job.engine.name} and a forward pass of {job.reference} do "
            f"not agree: {'; '.join(verification.reasons)}. Score with --engine transformers, or "
            "pass --verify-sample 0 to seal the cache as it is."
        )
    console.say(f"verified: {verification.summary()}")
    return verification


def _remove_leftovers(job: Job, manifest: Manifest) -> None:
    """Remove this job's plan, and the files of an earlier cache that the new seal has replaced."""
    shutil.rmtree(job.path("plan"), ignore_errors=True)
    kept = {shard.file for shard in [*manifest.shards, manifest.quarantine]}
    for path in _ours(job.config.cache):
        if path.name not in kept:
            path.unlink()


def _ours(cache: Path) -> Iterable[Path]:
    yield from cache.glob("shard-????????-?????.parquet")
    yield from cache.glob("quarantine-????????.parquet")
