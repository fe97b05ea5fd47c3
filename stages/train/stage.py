"""Stage two, joined: a sealed cache -> batches -> policy log-probs -> loss -> a trained policy."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments, set_seed

from data_schemas import run_record, scored_pairs
from data_schemas.atomic import write_text
from data_schemas.errors import InputError, ReflogpError
from data_schemas.manifest import Manifest
from data_schemas.run_record import RunRecord, StepMetrics
from stages.progress import Console
from stages.train.advice.callback import Adviser
from stages.train.agreement import disagreement, first_margin_noise
from stages.train.arguments import training_arguments
from stages.train.cached_rows import Rows, cached_rows, require_fitting
from stages.train.callbacks import MetricsFile, Progress
from stages.train.card import model_card
from stages.train.checkpoints import SealCheckpoints, remove_checkpoints, whole_checkpoints
from stages.train.config import TrainConfig
from stages.train.guards import DivergedError, Guard
from stages.train.held_out import held_out
from stages.train.layout import choose_layout
from stages.train.losses.objective import objective, uses
from stages.train.policy import load_policy, trainable_parameters
from stages.train.saving import merge_adapter, save_policy
from stages.train.scored_pairs import score_sample
from stages.train.trainer import PreferenceTrainer

_LAST_GOOD = "last_good"
_MARGINS, _ACCURACIES = "rewards/margins_per_token", "rewards/accuracies_per_token"
_REPLACED = (
    *(run_record.FILE_NAME, scored_pairs.FILE_NAME),
    *("adapter_*", "model*.safetensors*", "config.json"),
)


@dataclass(frozen=True)
class Job:
    """Stage two with everything resolved.

    Attributes:
        config: what the user set.
        policy: folder of the checkpoint that training starts from.
        adapter: folder of the LoRA adapter on top of it that training starts from, or None.
        manifest: of the cache.
        fingerprint: SHA-256 of all that the result depends on.
        eval_manifest: of the cache to evaluate on, where that is another one.
    """

    config: TrainConfig
    policy: Path
    adapter: Path | None
    manifest: Manifest
    fingerprint: str
    eval_manifest: Manifest | None = None


def train(job: Job, console: Console) -> RunRecord:
    """Train the policy against the cache and write it, with its metrics, card and record.

    Raises:
        InputError: the cache or the settings cannot be used.
        ReflogpError: policy and cache do not agree, training diverged, or it made no step.
    """
    started_at, begin = datetime.now(UTC), time.monotonic()
    config, dtype = job.config, job.manifest.engine.dtype
    _require_fitting(job)
    arguments = training_arguments(config, dtype, config.evaluates)
    resumed = _prepare_output(job, arguments)
    pairs, evaluated = _pairs(job)
    set_seed(config.seed)
    policy = load_policy(job.policy, config, dtype, job.adapter)
    trained, total = trainable_parameters(policy)
    console.say(
        f"training {trained:,} of {total:,} parameters on {len(pairs):,} {job.manifest.unit}, "
        f"{config.loss}"
    )
    if job.adapter is not None and config.lora_r:
        console.say(f"the adapter {job.adapter} is trained further: its own rank, alpha, modules")
    collate, layout = choose_layout(policy, config.layout, paired=job.manifest.kind == "paired")
    adviser = Adviser(config, console)
    console.say(f"batches: {layout}")
    trainer = PreferenceTrainer(
        model=policy,
        args=arguments,
        train_dataset=pairs,
        eval_dataset=evaluated,
        collate=collate,
        callbacks=[adviser, *_callbacks(job, console)],
        loss=objective(
            config.losses,
            beta=config.beta,
            arguments=config.loss_args,
            weighting=config.weighting,
        ),
        squares=config.weighting == "wpo",
    )
    trainer.remove_callback(PrinterCallback)  # the metrics are in the file, the steps on the bar
    _require_agreement(trainer, pairs, job, console)
    if resumed is not None:
        console.say(f"resumed from {resumed}")
    loop = time.monotonic()
    _run(trainer, resumed, job)
    loop_seconds = time.monotonic() - loop
    save_policy(trainer, config.output, job.policy, job.adapter, dtype)
    score_sample(trainer, config, job.manifest, pairs, evaluated, job.eval_manifest)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not steps:
        raise ReflogpError("training ended without a step; check --epochs and --max-steps")
    record = RunRecord(
        reflogp_version=version("reflogp"),
        fingerprint=job.fingerprint,
        cache=str(config.cache),
        policy=config.policy or job.manifest.reference.name,
        adapter=None if job.adapter is None else str(job.adapter),
        settings=config.model_dump(mode="json"),
        kind=job.manifest.kind,
        pairs=len(pairs),
        evaluated_pairs=0 if evaluated is None else len(evaluated),
        steps=trainer.state.global_step,
        processes=arguments.world_size,
        trained_parameters=trained,
        first=_mean(steps[:1]),
        first_margin_noise=first_margin_noise(config, job.manifest),
        last=_mean(steps[-max(1, len(steps) // 4) :]),
        evaluation=_best_evaluation(trainer),
        best_step=trainer.state.best_global_step,
        resumed_from=None if resumed is None else int(resumed.name.rpartition("-")[2]),
        warnings=adviser.warnings,
        started_at=started_at,
        seconds=time.monotonic() - begin,
        pairs_per_second=trainer.pairs_seen / loop_seconds,
    )
    if trainer.is_world_process_zero():
        _finish(job, record)
    return record


def _prepare_output(job: Job, arguments: TrainingArguments) -> Path | None:
    """Clear the output of what is not of this run; the checkpoint to go on from, if there is one.

    An adapter that an earlier run left beside a full model would be loaded on top of it.
    """
    output = job.config.output
    with arguments.main_process_first(local=False):  # all of them must find the same
        # the newest to go on from, and the others because the best so far is one of them
        found = whole_checkpoints(output, job.fingerprint) if job.config.resume else []
        if arguments.process_index == 0:
            for pattern in _REPLACED:
                for path in output.glob(pattern):
                    path.unlink()
            remove_checkpoints(output, keep=found)
    return found[-1] if found else None


def _require_fitting(job: Job) -> None:
    """Refuse caches that have not what the losses are over, before anything is removed."""
    config = job.config
    require_fitting(config.cache, job.manifest, config.losses)
    if config.eval_cache is not None and job.eval_manifest is not None:
        require_fitting(config.eval_cache, job.eval_manifest, config.losses)


def _pairs(job: Job) -> tuple[Rows, Rows | None]:
    """What is trained on, and what is evaluated on if anything is."""
    config = job.config
    pairs = cached_rows(config.cache, job.manifest, config.losses)
    if config.eval_cache is not None and job.eval_manifest is not None:
        return pairs, cached_rows(config.eval_cache, job.eval_manifest, config.losses)
    trained, evaluated = held_out(pairs, config.eval_fraction, config.seed)
    if not trained:
        raise InputError(
            f"--eval-fraction {config.eval_fraction:g} leaves none of {len(pairs)} "
            f"{job.manifest.unit} to train on: those of one prompt stay together. Give less."
        )
    return (Subset(pairs, trained), Subset(pairs, evaluated)) if evaluated else (pairs, None)


def _callbacks(job: Job, console: Console) -> list[Any]:
    config = job.config
    callbacks = [
        Guard(config.stop_grad_norm),
        MetricsFile(config.output / "metrics.jsonl"),
        Progress(console),
        SealCheckpoints(job.fingerprint),
    ]
    if config.early_stopping:
        callbacks.append(
            EarlyStoppingCallback(config.early_stopping, config.early_stopping_threshold)
        )
    return callbacks


def _require_agreement(trainer: PreferenceTrainer, pairs: Rows, job: Job, console: Console) -> None:
    """Stop before the first step if the policy does not score what the cache says."""
    if not uses(job.config.losses, "reference"):
        return
    problem = disagreement(trainer.logps, pairs, job.manifest, job.config.batch_size)
    if problem is None:
        return
    if job.config.quantize != "none":
        console.warn(f"{problem}, apart from --quantize {job.config.quantize}")
        return
    if not job.config.allow_mismatch:
        raise ReflogpError(
            f"{problem}. Run `reflogp verify {job.config.cache} --sample 100`; --allow-mismatch "
            "trains all the same."
        )
    console.warn(problem)


def _run(trainer: PreferenceTrainer, resumed: Path | None, job: Job) -> None:
    """Train to the end; where that diverges, keep the last good state and say where it is."""
    output = job.config.output
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    except DivergedError as error:
        if not trainer.diverged():
            folder = output / _LAST_GOOD
            save_policy(trainer, folder, job.policy, job.adapter, job.manifest.engine.dtype)
            kept = f"The weights before it are in {folder}."
        elif checkpoints := whole_checkpoints(output, job.fingerprint):
            kept = f"The last good state is {checkpoints[-1]}."
        else:
            kept = "There was no checkpoint yet; --checkpoint-steps makes them earlier."
        raise ReflogpError(
            f"{error}: training has diverged. Lower --learning-rate, raise --beta, or look at the "
            f"data. {kept}"
        ) from error


def _finish(job: Job, record: RunRecord) -> None:
    """What stands beside the model: merged weights, card, record; and no more checkpoints."""
    output = job.config.output
    if job.config.merge:
        merge_adapter(output, job.policy, job.manifest.engine.dtype)
    write_text(output / "README.md", model_card(job.config, job.manifest, record))
    run_record.write(output, record)
    newest = whole_checkpoints(output, job.fingerprint)[::-1]
    remove_checkpoints(output, keep=newest[: job.config.keep_checkpoints])


def _best_evaluation(trainer: PreferenceTrainer) -> StepMetrics | None:
    """The evaluation of the weights that are kept: of the best step, or else of the last one."""
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = [entry for entry in found if entry["step"] == trainer.state.best_global_step]
    return _mean((best or found)[-1:], "eval_") if found else None


def _mean(steps: list[dict[str, float]], prefix: str = "") -> StepMetrics:
    def mean(name: str) -> float:
        # a step can be without a good row, or without a bad one
        found = [step[prefix + name] for step in steps if prefix + name in step]
        return sum(found) / len(found) if found else 0.0

    per_token = {
        f"{what}_per_token": mean(name)
        for what, name in (("margin", _MARGINS), ("accuracy", _ACCURACIES))
        if prefix + name in steps[0]
    }
    margin = mean("rewards/chosen") - mean("rewards/rejected")
    return StepMetrics(
        loss=mean("loss"), margin=margin, accuracy=mean("rewards/accuracies"), **per_token
    )
