"""Source -> a complete plan on disk, or the plan of an earlier run or another job."""

import itertools
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import entries, require_space
from reflogp.data_schemas.plan_record import PlanRecord
from reflogp.data_schemas.reading import Reading
from reflogp.data_schemas.sealed_file import Shard
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.model.causal_lm import causal_config
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import load_saved_tokenizer, vocabulary
from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, write_plan
from reflogp.stages.precompute.read.sources import is_hub_id, source_files
from reflogp.stages.precompute.read.tables import TABLES
from reflogp.stages.precompute.tokens.ends import TokenRules, stop_ids
from reflogp.stages.precompute.tokens.reader import Reader
from reflogp.stages.precompute.tokens.templates import Templates
from reflogp.stages.precompute.tokens.tokenize import Tokenizer
from reflogp.stages.progress import Console

QUARANTINE_NAME = "quarantine.parquet"

# One or two minutes of scoring per shard, which is what a killed run can lose.
_SHARD_TOKENS = {"cpu": 100_000}
_SHARD_TOKENS_ELSEWHERE = 4_000_000
# Least size of the plan as a share of the source's. They are about equal without truncation (4
# bytes for a token of 4 letters), and the plan is a hundredth if most of every row is truncated.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """A complete plan.

    Attributes:
        folder: the plan's folder.
        record: the record that sealing needs.
        shards: the units of work.
    """

    folder: Path
    record: PlanRecord
    shards: list[PlannedShard]

    @property
    def rows(self) -> int:
        """Rows to score."""
        return sum(shard.rows for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Sequence tokens to score."""
        return sum(shard.tokens for shard in self.shards)


def make_plan(job: Job, console: Console) -> Plan:
    """Return the complete plan of `job` from disk, or make it from the source.

    Raises:
        InputError: the data or the tokenizer cannot be used, or no row is left to score.
    """
    plan = find_plan(job.path("plan"))
    if plan is None or plan.record.inputs != job.inputs:
        plan = _write(job, console)
    else:
        job.claim()
        _tell_of_shard_tokens(job, plan, console)
    if plan.record.kind == "paired" and not job.config.kl_completions:
        console.warn("--no-kl-completions has no effect, because the data are pairs")
    if job.config.pair != "best-worst" and plan.record.form not in {t.name for t in TABLES}:
        console.warn(
            f"--pair {job.config.pair} has no effect, because the data have no choice of responses"
        )
    if plan.record.reading is not None:
        tell(plan.record.reading, console)
    if plan.record.quarantined_by_reason:
        console.warn(plan.record.quarantine_summary)
    count = len(plan.shards)
    console.say(
        f"{job.config.data}: {plan.rows:,} rows ({plan.record.form}), {plan.tokens:,} tokens to "
        f"score in {count} shard{'s' * (count > 1)}"
    )
    return plan


def _tell_of_shard_tokens(job: Job, plan: Plan, console: Console) -> None:
    """Warn if --shard-tokens differs from that of an existing plan, which stays as it is."""
    wanted, planned = job.config.shard_tokens, plan.record.config.get("shard_tokens")
    if wanted is not None and wanted != planned:
        was = f"--shard-tokens {planned}" if planned else "the default"
        console.warn(
            f"--shard-tokens {wanted} has no effect, because {plan.folder} was made with {was}"
        )


def tell(reading: Reading, console: Console) -> None:
    """Report the use of each column and the notices on the rows."""
    console.say(f"columns: {reading.columns}")
    for notice in reading.notices:
        console.warn(str(notice))


def find_plan(folder: Path) -> Plan | None:
    """Return the plan in `folder`, or None if it is incomplete."""
    record = plan_record.read(folder)
    if record is None:
        return None
    names = set(entries(folder))
    if not names.issuperset({record.quarantine.file, *(shard.file for shard in record.shards)}):
        return None
    shards = [
        PlannedShard(number, folder / shard.file, shard.rows, shard.tokens, shard.sha256)
        for number, shard in enumerate(record.shards)
    ]
    return Plan(folder, record, shards)


def load_tokenizer(reference: Checkpoint, config: DataConfig) -> tuple[Tokenizer, list[int]]:
    """Load the model's tokenizer with the rules of `config`; also return its stop ids.

    Raises:
        InputError: the tokenizer cannot be loaded, it has no template of the name that `config`
            gives, or the model has fewer positions than `max_length`.
    """
    model_config = causal_config(reference.folder, trusted=reference.trusted).get_text_config()
    tokenizer: PreTrainedTokenizerBase = load_saved_tokenizer(
        reference.tokenizer, trusted=reference.trusted
    )
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise InputError(
            f"--max-length {config.max_length} is more than the {limit} positions of the model in "
            f"{reference.folder}. Give at most {limit}."
        )
    stops = stop_ids(tokenizer, reference.folder)
    rules = TokenRules(
        config.max_length, config.truncate, frozenset(stops), vocabulary(reference.folder)
    )
    templates = Templates(
        tokenizer,
        name=config.chat_template,
        source=config.template_source(),
        arguments=config.template_kwargs,
    )
    return Tokenizer(tokenizer, rules, templates), stops


def _write(job: Job, console: Console) -> Plan:
    folder = job.path("plan")
    if not is_hub_id(job.config.data):
        source = sum(p.stat().st_size for p in source_files(job.config.data, job.config.split))
        require_space(job.config.cache, int(_LEAST_SHARE * source), "the plan of the data")
    tokenizer, stops = load_tokenizer(job.reference, job.config)
    with Quarantine(folder / QUARANTINE_NAME, job.claim) as quarantine:
        reader = Reader(job.config, quarantine)
        with console.track("tokenizing", None, "rows") as advance:
            tokenized = reader.tokenized(tokenizer, advance)
            first = list(itertools.islice(tokenized, 1))  # write nothing before a usable row
            if not first:
                raise InputError(
                    f"{job.config.data}: none of the {reader.read} rows can be used: "
                    f"{quarantine.summary()}. Fix the data, or the options that name its columns "
                    "and limits."
                )
            job.claim()
            shards = write_plan(
                itertools.chain(first, tokenized),
                folder,
                job.config.shard_tokens or default_shard_tokens(),
            )
    aside, sizes = quarantine.reasons, entries(folder)
    record = PlanRecord(
        schema_version=plan_record.SCHEMA_VERSION,
        reflogp_version=version("reflogp"),
        inputs=job.inputs,
        kind="paired" if reader.form.paired else "unpaired",
        form=reader.form.name,
        reading=reader.reading(),
        rows_read=reader.read,
        template_diverged=tokenizer.template_diverged,
        stop_token_ids=stops,
        shards=[entry(shard, sizes.get(shard.path.name) or 0) for shard in shards],
        quarantine=describe(folder / QUARANTINE_NAME, rows=aside.total(), tokens=0),
        quarantined_by_reason=dict(aside.most_common()),
        quarantine_summary=quarantine.summary() if aside else "",
        config=job.config.model_dump(mode="json", exclude={"share"}),  # a share is one job's
        reference=str(job.reference.folder),
        adapter=None if job.reference.adapter is None else str(job.reference.adapter),
        dtype=job.reference.dtype,
        engine=_engine(job),
    )
    plan_record.write(folder, record)
    return Plan(folder, record, shards)


def _engine(job: Job) -> dict[str, Any]:
    return {"name": job.engine.name, "version": job.engine.version, "why": job.engine.why}


def entry(shard: PlannedShard, size: int) -> Shard:
    """Return the plan's entry for a planned shard of `size` bytes."""
    return Shard(
        file=shard.path.name,
        rows=shard.rows,
        tokens=shard.tokens,
        bytes=size,
        sha256=shard.sha256,
    )


def default_shard_tokens() -> int:
    """Return the default number of tokens per shard for this machine."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _SHARD_TOKENS.get(device, _SHARD_TOKENS_ELSEWHERE)
