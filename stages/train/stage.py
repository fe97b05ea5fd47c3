"""Stage two, joined: a sealed cache -> batches -> policy log-probs -> loss -> a trained policy."""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback, TrainingArguments, set_seed

from data_schemas import run_record
from data_schemas.atomic import write_text
from data_schemas.errors import ReflogpError
from data_schemas.manifest import Dtype, Manifest
from data_schemas.run_record import RunRecord, StepMetrics
from stages.adapter import tokenizer_folder
from stages.progress import Console
from stages.train.cached_pairs import CachedPairs
from stages.train.callbacks import MetricsFile, Progress
from stages.train.card import model_card
from stages.train.config import TrainConfig
from stages.train.layout import choose_layout
from stages.train.losses.objective import objective, uses
from stages.train.policy import load_policy, trainable_parameters
from stages.train.trainer import PreferenceTrainer

_STANDARD_DEVIATIONS = 5.0  # the noise is estimated from few rows
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Job:
    """Stage two with everything resolved.

    Attributes:
        config: what the user set.
        policy: folder of the checkpoint that training starts from.
        adapter: folder of the LoRA adapter on top of it that training starts from, or None.
        manifest: of the cache.
        fingerprint: SHA-256 of all that the result depends on.
    """

    config: TrainConfig
    policy: Path
    adapter: Path | None
    manifest: Manifest
    fingerprint: str


def train(job: Job, console: Console) -> RunRecord:
    """Train the policy against the cache and write it, with its metrics, card and record.

    Raises:
        InputError: the cache or the settings cannot be used.
        ReflogpError: training ended without a single step.
    """
    started_at, begin = datetime.now(UTC), time.monotonic()
    config = job.config
    pairs = CachedPairs(config.cache, job.manifest, tokens=uses(config.losses, "tokens"))
    _remove_earlier(config.output)
    set_seed(config.seed)
    policy = load_policy(job.policy, config, job.manifest.engine.dtype, job.adapter)
    if job.adapter is not None and config.lora_r:
        console.say(f"the adapter {job.adapter} is trained further: its own rank, alpha, modules")
    trained, total = trainable_parameters(policy)
    console.say(
        f"training {trained:,} of {total:,} parameters on {len(pairs):,} pairs, {config.loss}"
    )
    collate, layout = choose_layout(policy, config.layout)
    console.say(f"batches: {layout}")
    metrics = MetricsFile(config.output / "metrics.jsonl")
    trainer = PreferenceTrainer(
        model=policy,
        args=training_arguments(config, job.manifest.engine.dtype),
        train_dataset=pairs,
        collate=collate,
        callbacks=[metrics, Progress(console)],
        loss=objective(
            config.losses,
            beta=config.beta,
            arguments=config.loss_args,
            weighting=config.weighting,
        ),
    )
    loop = time.monotonic()
    trainer.remove_callback(PrinterCallback)  # the metrics are in the file, the steps on the bar
    trainer.train()
    loop_seconds = time.monotonic() - loop
    if not metrics.steps:
        raise ReflogpError("training ended without a step; check --epochs and --max-steps")
    first, noise = _mean(metrics.steps[:1]), first_margin_noise(config, job.manifest)
    if noise is not None and abs(first.margin) > _STANDARD_DEVIATIONS * noise + _ROUNDING:
        console.warn(
            f"the first margin is {first.margin:+.4f}, not 0: rounding explains about {noise:.4f}. "
            "Policy and cache do not agree; run `reflogp verify`."
        )
    record = RunRecord(
        reflogp_version=version("reflogp"),
        fingerprint=job.fingerprint,
        cache=str(config.cache),
        policy=config.policy or job.manifest.reference.name,
        adapter=None if job.adapter is None else str(job.adapter),
        settings=config.model_dump(mode="json"),
        pairs=len(pairs),
        steps=trainer.state.global_step,
        trained_parameters=trained,
        first=first,
        first_margin_noise=noise,
        last=_mean(metrics.steps[-max(1, len(metrics.steps) // 4) :]),
        started_at=started_at,
        seconds=time.monotonic() - begin,
        pairs_per_second=trainer.pairs_seen / loop_seconds,
    )
    _save(trainer.model, job)
    write_text(config.output / "README.md", model_card(config, job.manifest, record))
    run_record.write(config.output, record)
    return record


def _remove_earlier(output: Path) -> None:
    """Remove what an earlier run left: an adapter beside a full model would be loaded on top."""
    for pattern in (run_record.FILE_NAME, "adapter_*", "model*.safetensors*", "config.json"):
        for path in output.glob(pattern):
            path.unlink()


def _save(policy: Any, job: Job) -> None:
    """Write the adapter or the model, with the tokenizer, as transformers and vLLM load them."""
    if not job.config.lora_r:
        policy.to(getattr(torch, job.manifest.engine.dtype))  # as the checkpoint was
    policy.save_pretrained(job.config.output)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(job.policy, job.adapter))
    tokenizer.save_pretrained(job.config.output)


def training_arguments(config: TrainConfig, dtype: Dtype) -> TrainingArguments:
    """`config` in transformers' terms."""
    # LoRA's frozen weights already have the cache's dtype; float32 weights compute in it.
    autocast = dtype if config.lora_r == 0 else "float32"
    options: dict[str, Any] = {
        "output_dir": str(config.output),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "learning_rate": config.peak_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": autocast == "bfloat16",
        "fp16": autocast == "float16",
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show a diverged run as a good one
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    arguments = TrainingArguments(**options)
    # With several GPUs in sight Trainer would use DataParallel, which splits batches inside the
    # model; more processes (torchrun) are the way to more GPUs. n_gpu is set on its first use.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def first_margin_noise(config: TrainConfig, manifest: Manifest) -> float | None:
    """Standard deviation that rounding gives the first step's mean margin, which is 0 but for it.

    None without a verification, and for a loss without a reference, whose margin is not 0.

    A pair's margin is beta times the difference of two responses, each off by `response_sd`.
    """
    if manifest.verification is None or not uses(config.losses, "reference"):
        return None
    pairs = min(config.batch_size * config.accumulation, manifest.counts.rows)
    return config.beta * manifest.verification.training.response_sd * math.sqrt(2 / pairs)


def _mean(steps: list[dict[str, float]]) -> StepMetrics:
    def mean(name: str) -> float:
        return sum(step[name] for step in steps) / len(steps)

    return StepMetrics(
        loss=mean("loss"), margin=mean("rewards/margins"), accuracy=mean("rewards/accuracies")
    )
