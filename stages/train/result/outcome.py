"""Builds the record of a finished training run."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from reflogp.data_schemas.run_record import RunRecord, RunWarning, StepMetrics
from reflogp.stages.train.job import TrainJob
from reflogp.stages.train.loop.agreement import first_margin_noise
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.model.policy import trainable_parameters

_MARGINS, _ACCURACIES = "rewards/margins_per_token", "rewards/accuracies_per_token"


def outcome(
    job: TrainJob,
    trainer: PreferenceTrainer,
    *,
    warnings: list[RunWarning],
    resumed: Path | None,
    started_at: datetime,
    loop_seconds: float,
) -> RunRecord:
    """The record of a run that has just ended.

    Args:
        job: the run.
        trainer: the Trainer after the run.
        warnings: given during the run.
        resumed: the checkpoint that the run resumed from, if any.
        started_at: start of the command, in UTC.
        loop_seconds: duration of the training loop.
    """
    config, state = job.config, trainer.state
    steps = [entry for entry in state.log_history if "loss" in entry]
    evaluated = trainer.eval_dataset
    return RunRecord(
        reflogp_version=version("reflogp"),
        fingerprint=job.fingerprint,
        cache=str(config.cache),
        policy=config.policy or job.manifest.reference.name,
        adapter=None if job.policy.adapter is None else str(job.policy.adapter),
        settings=config.model_dump(mode="json"),
        kind=job.manifest.kind,
        weights=job.manifest.row_weights,
        pairs=len(trainer.train_dataset),
        evaluated_pairs=0 if evaluated is None else len(evaluated),
        steps=state.global_step,
        processes=trainer.args.world_size,
        trained_parameters=trainable_parameters(trainer.model)[0],
        first=_mean(steps[:1]),
        first_margin_noise=first_margin_noise(config, job.manifest),
        last=_mean(steps[-max(1, len(steps) // 4) :]),
        evaluation=_best_evaluation(trainer),
        best_step=state.best_global_step,
        resumed_from=None if resumed is None else int(resumed.name.rpartition("-")[2]),
        warnings=warnings,
        started_at=started_at,
        seconds=(datetime.now(UTC) - started_at).total_seconds(),
        pairs_per_second=trainer.pairs_seen / loop_seconds,
    )


def _best_evaluation(trainer: PreferenceTrainer) -> StepMetrics | None:
    """The evaluation of the weights that are kept: at the best step, or else at the last one."""
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = [entry for entry in found if entry["step"] == trainer.state.best_global_step]
    return _mean((best or found)[-1:], "eval_") if found else None


def _mean(steps: list[dict[str, float]], prefix: str = "") -> StepMetrics:
    def mean(name: str) -> float:
        # a step may have no good row, or no bad one
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
