"""Stage two as a whole: a sealed cache -> batches -> log-probs -> loss -> a trained policy."""

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from transformers import PrinterCallback, TrainingArguments, set_seed

from reflogp.data_schemas import run_record
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.run_record import RunRecord
from reflogp.stages.model.causal_lm import is_mixture
from reflogp.stages.model.loading import limits_under
from reflogp.stages.progress import Console
from reflogp.stages.signals import grace, keeping
from reflogp.stages.train.advice.callback import Adviser
from reflogp.stages.train.data.cached_rows import CachedRows, cached_rows, longest, require_fitting
from reflogp.stages.train.data.held_out import held_out
from reflogp.stages.train.data.layout import choose_layout
from reflogp.stages.train.job import TrainJob
from reflogp.stages.train.loop.agreement import disagreement
from reflogp.stages.train.loop.arguments import training_arguments
from reflogp.stages.train.loop.best import BestStep
from reflogp.stages.train.loop.callbacks import (
    DivergedError,
    Guard,
    MetricsFile,
    Progress,
    StopInTime,
)
from reflogp.stages.train.loop.host_memory import keep_few_kernels
from reflogp.stages.train.loop.no_effect import no_effect
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.losses.objective import objective, uses
from reflogp.stages.train.model.policy import load_policy, trainable_parameters
from reflogp.stages.train.result.card import model_card
from reflogp.stages.train.result.checkpoints import SealCheckpoints, require_room, whole_checkpoints
from reflogp.stages.train.result.outcome import outcome
from reflogp.stages.train.result.saving import merge_adapter, save_policy
from reflogp.stages.train.result.scored_pairs import score_sample
from reflogp.stages.train.result.switch import commit, switch
from reflogp.stages.train.result.unfinished import METRICS, new_result, remove_parts, working
from reflogp.stages.train.schedule import total_steps

_LAST_GOOD = "last_good"


def train(job: TrainJob, console: Console) -> RunRecord:
    """Train the policy against the cache, and write it with its metrics, card and record.

    Raises:
        InputError: the cache or the settings cannot be used.
        ReflogpError: policy and cache do not agree, or training diverged or changed nothing.
    """
    started_at, config, dtype = datetime.now(UTC), job.config, job.policy.dtype
    _require_fitting(job)
    pairs, evaluated = _pairs(job)
    _say_what_does_nothing(job, pairs, console)
    keep_few_kernels()
    arguments = training_arguments(config, dtype, job.folder)
    adviser = Adviser(config, console)
    with keeping(lambda: _kept(job)), ExitStack() as held:
        resumed = _prepare(job, arguments, held)
        trainer = _trainer(
            job, arguments, pairs, evaluated, [adviser, *_callbacks(job, console, held)], console
        )
        _require_agreement(trainer, pairs, job, console)
        if resumed is not None:
            console.say(f"resumed from {resumed}")
        held.enter_context(grace(config.grace_seconds))
        begin = time.monotonic()
        _run(trainer, resumed, job)
        loop_seconds = time.monotonic() - begin
        first = trainer.is_world_process_zero()
        result = new_result(job.folder) if first else job.folder
        save_policy(trainer, result, job.policy, job.manifest.reference.chat_template)
        score_sample(trainer, job, result, pairs, evaluated)
        record = outcome(
            job,
            trainer,
            warnings=adviser.warnings,
            resumed=resumed,
            started_at=started_at,
            loop_seconds=loop_seconds,
        )
        if first:
            _finish(job, result, record)
    return record


def _trainer(
    job: TrainJob,
    arguments: TrainingArguments,
    pairs: CachedRows,
    evaluated: CachedRows | None,
    callbacks: list[Any],
    console: Console,
) -> PreferenceTrainer:
    """Load the policy, choose its layout and loss, and make the Trainer."""
    config = job.config
    set_seed(config.seed)
    policy = load_policy(job.policy, config)
    trained, total = trainable_parameters(policy)
    console.say(
        f"training {trained:,} of {total:,} parameters on {len(pairs):,} {job.manifest.unit}, "
        f"{config.loss}"
    )
    require_room(job.folder, config, trained, total, job.policy.dtype)
    if job.policy.dtype == "float16":
        console.say(
            "the cache is in float16, but training computes in float32, because gradients vanish "
            "in float16. With a cache in bfloat16, training takes half the memory"
        )
    if job.manifest.row_weights is not None:
        console.say(f"each loss is multiplied by the row's weight, {job.manifest.row_weights}")
    adapter = job.policy.adapter
    if adapter is not None and config.lora_r:
        console.say(f"training continues with {adapter}, which keeps its rank, alpha, modules")
    rows = longest(pairs) + ([] if evaluated is None else longest(evaluated))
    paired = job.manifest.kind == "paired"
    collate, layout = choose_layout(policy, config.layout, rows, paired=paired)
    console.say(f"batches: {layout}")
    loss = objective(
        config.losses, beta=config.beta, arguments=config.loss_args, weighting=config.weighting
    )
    trainer = PreferenceTrainer(
        model=policy,
        args=arguments,
        train_dataset=pairs,
        eval_dataset=evaluated,
        collate=collate,
        callbacks=callbacks,
        loss=loss,
        squares=config.weighting == "wpo",
        even=uses(config.losses, "batch") or bool(config.loss_args.get("batch_shift")),
    )
    trainer.remove_callback(PrinterCallback)  # MetricsFile and Progress show the metrics
    return trainer


def _say_what_does_nothing(job: TrainJob, pairs: CachedRows, console: Console) -> None:
    config = job.config
    steps = total_steps(
        len(pairs),
        rows_a_step=config.batch_size * config.accumulation,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )
    for said in no_effect(
        config, job.manifest, adapter=job.policy.adapter is not None, steps=steps
    ):
        console.warn(said)


def _prepare(job: TrainJob, arguments: TrainingArguments, held: ExitStack) -> Path | None:
    """Create the folder that the run works in. Returns the checkpoint to resume from, if any."""
    with arguments.main_process_first(local=False):  # all processes must find the same
        if arguments.process_index == 0:
            held.enter_context(working(job.config.output, job.folder, job.own))
        # the newest to resume from, and the others because one of them is the best so far
        found = whole_checkpoints(job.folder, job.fingerprint) if job.config.resume else []
        if arguments.process_index == 0:
            remove_parts(job.folder, keep=[path.name for path in found])
    return found[-1] if found else None


def _require_fitting(job: TrainJob) -> None:
    """Refuse caches that do not have what the losses need."""
    config = job.config
    require_fitting(config.cache, job.manifest, config.losses)
    if config.eval_cache is not None and job.eval_manifest is not None:
        require_fitting(config.eval_cache, job.eval_manifest, config.losses)


def _pairs(job: TrainJob) -> tuple[CachedRows, CachedRows | None]:
    """The rows for training, and those for evaluation if there are any."""
    config = job.config
    limits = limits_under(job.manifest, job.policy.folder)
    pairs = cached_rows(config.cache, job.manifest, config.losses, limits)
    if config.eval_cache is not None and job.eval_manifest is not None:
        limits = limits_under(job.eval_manifest, job.policy.folder)
        return pairs, cached_rows(config.eval_cache, job.eval_manifest, config.losses, limits)
    trained, evaluated = held_out(pairs, config.eval_fraction, config.seed)
    if not trained:
        raise InputError(
            f"--eval-fraction {config.eval_fraction:g} leaves none of {len(pairs)} "
            f"{job.manifest.unit} to train on, since those of a prompt stay together. Give a "
            "smaller fraction."
        )
    return (Subset(pairs, trained), Subset(pairs, evaluated)) if evaluated else (pairs, None)


def _callbacks(job: TrainJob, console: Console, held: ExitStack) -> list[Any]:
    config, progress = job.config, Progress(console)
    held.callback(progress.on_train_end)  # also after an error
    return [
        Guard(config.stop_grad_norm),
        MetricsFile(job.folder / METRICS),
        progress,
        SealCheckpoints(job.fingerprint),
        BestStep(config.early_stopping, config.early_stopping_threshold),
        StopInTime(),
    ]


def _require_agreement(
    trainer: PreferenceTrainer, pairs: CachedRows, job: TrainJob, console: Console
) -> None:
    """Stop before the first step if the policy's scores do not agree with the cache."""
    if not uses(job.config.losses, "reference"):
        return
    mixture = is_mixture(trainer.accelerator.unwrap_model(trainer.model).config)
    problem = disagreement(
        trainer.logps, pairs, job.manifest, job.config.batch_size, mixture=mixture
    )
    if problem is None:
        return
    if job.config.quantize != "none":
        console.warn(f"{problem}, apart from --quantize {job.config.quantize}")
        return
    if not job.config.allow_mismatch:
        raise ReflogpError(
            f"{problem}. Run `reflogp verify {job.config.cache} --sample 100`: it compares the "
            "cache and the forward pass of training with a float32 forward of the reference."
        )
    console.warn(problem)


def _run(trainer: PreferenceTrainer, resumed: Path | None, job: TrainJob) -> None:
    """Train to the end. If training diverges, keep the last good state and say where it is.

    Raises:
        ReflogpError: training diverged, or changed nothing.
    """
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    except DivergedError as error:
        if not trainer.diverged():
            folder = job.folder / _LAST_GOOD
            save_policy(trainer, folder, job.policy, job.manifest.reference.chat_template)
            kept = f"The weights after the last good step are in {folder}."
        elif checkpoints := whole_checkpoints(job.folder, job.fingerprint):
            kept = f"The last good state is {checkpoints[-1]}."
        else:
            kept = "There was no checkpoint yet; a smaller --checkpoint-steps writes one earlier."
        raise ReflogpError(
            f"{error}: training has diverged. Lower --learning-rate, raise --beta, or look at the "
            f"data. {kept}"
        ) from error
    if (why := trainer.why_nothing_changed()) is not None:
        raise ReflogpError(f"nothing was trained: {why} No model was written.")


def _kept(job: TrainJob) -> str:
    """What a run that a signal stops leaves behind, for the last line of its output."""
    if checkpoints := whole_checkpoints(job.folder, job.fingerprint):
        return f"{checkpoints[-1]} is kept, and the same command resumes from it."
    if not job.folder.exists():
        return f"The run had just finished: {job.config.output} is complete."
    return "There is no checkpoint yet, so the same command starts again."


def _finish(job: TrainJob, result: Path, record: RunRecord) -> None:
    """Add merged weights, card and record to the result, and move it into the output."""
    if job.config.merge:
        merge_adapter(result, job.policy)
    write_text(result / "README.md", model_card(job.config, job.manifest, record))
    run_record.write(result, record)
    newest = whole_checkpoints(job.folder, job.fingerprint)[::-1]
    commit(job.folder, result, [path.name for path in newest[: job.config.keep_checkpoints]])
    switch(job.config.output, job.folder)
