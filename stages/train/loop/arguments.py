"""Translates the user's settings to transformers' TrainingArguments."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Dtype
from reflogp.stages.processes import processes
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.precision import autocast_dtype

_NEVER = 10**9  # steps


def training_arguments(config: TrainConfig, dtype: Dtype, folder: Path) -> TrainingArguments:
    """`config` as Trainer's arguments for this process, which torchrun or accelerate may have run.

    Args:
        config: of the run.
        dtype: of the cache.
        folder: for Trainer's checkpoints and the trackers' logs.

    Raises:
        InputError: the processes cannot share a step evenly, or a tracker is not installed.
    """
    _require_trackers(config.trackers)
    if config.fsdp and "LOCAL_RANK" not in os.environ:
        raise InputError("--fsdp needs several processes: start the command with torchrun.")
    autocast = autocast_dtype(config, dtype)
    cuda = torch.cuda.is_available()
    saved: dict[str, Any] = {"save_strategy": "steps" if config.checkpoint_steps else "no"}
    if config.evaluates:
        saved |= {"eval_strategy": "steps", "load_best_model_at_end": bool(config.checkpoint_steps)}
    options: dict[str, Any] = saved | {
        "output_dir": str(folder),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": _passes(config),
        "learning_rate": config.peak_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": autocast == "bfloat16",
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide that a run diverged
        "eval_steps": config.checkpoint_steps or _NEVER,  # the end is always evaluated
        "save_steps": config.checkpoint_steps or 1,
        # if a kill interrupts writing one, the previous one is left; plus the best one
        "save_total_limit": 3 if config.evaluates else 2,
        "metric_for_best_model": f"eval_{config.best_metric}" if config.evaluates else None,
        "greater_is_better": config.best_metric != "loss",
        "restore_callback_states_from_checkpoint": True,  # the patience that early stopping used
        "report_to": config.trackers or "none",
        "run_name": config.output.name,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "ddp_backend": "gloo" if processes() > 1 and not cuda else None,
        "ddp_find_unused_parameters": False,
        "fsdp": config.fsdp or None,
        "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
        if config.fsdp
        else None,
    }
    arguments = TrainingArguments(**options)
    # With several visible GPUs, Trainer would use DataParallel, which splits batches inside the
    # model. To use more GPUs, torchrun starts more processes. n_gpu is set on its first use.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _passes(config: TrainConfig) -> int:
    """Forward passes of one process per step. All processes have the same number."""
    sharing = processes()
    if config.accumulation % sharing:
        raise InputError(
            f"--accumulation {config.accumulation} is not a multiple of the {sharing} processes "
            "that share the forward passes of a step. Give "
            f"{-(-config.accumulation // sharing) * sharing}."
        )
    return config.accumulation // sharing


def _require_trackers(trackers: list[str]) -> None:
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise InputError(f"--report-to {tracker}: it is not installed (pip install {tracker}).")


def enable_fsdp_on_cpu(trainer: Any) -> None:
    """Turn on FSDP in a Trainer whose arguments ask for it, if accelerate did not."""
    settings = trainer.args.fsdp_plugin_args
    if settings is None or trainer.is_fsdp_enabled:
        return
    plugin, state = FullyShardedDataParallelPlugin(**settings), trainer.accelerator.state
    if trainer.accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(trainer.accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    # AcceleratorState reads its type from PartialState on every access
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
