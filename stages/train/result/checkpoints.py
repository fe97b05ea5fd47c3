"""Checkpoints that a killed run goes on from: only those that were written whole, by this run."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import ValidationError
from pydantic_core import from_json
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.manifest import Dtype
from reflogp.data_schemas.record import MOST_BYTES, Record
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.switch import sync

_SEAL = "reflogp_checkpoint.json"
_PATTERN = "checkpoint-*"


class CheckpointSeal(Record):
    """Written into a checkpoint's folder when all its files are on the disk."""

    fingerprint: str
    step: int
    sizes: dict[str, int]


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint that Trainer has written as whole."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Sync the files, then seal them."""
        PartialState().wait_for_everyone()  # each process writes its random state, or its shard
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _seal(folder, state.global_step, self._fingerprint)


def whole_checkpoints(folder: Path, fingerprint: str) -> list[Path]:
    """The whole checkpoints in the folder of the run with this fingerprint, the newest one last."""
    seals = {path: _whole(path) for path in folder.glob(_PATTERN)}
    steps = {p: seal.step for p, seal in seals.items() if seal and seal.fingerprint == fingerprint}
    return sorted(steps, key=lambda path: steps[path])


def require_room(folder: Path, config: TrainConfig, trained: int, total: int, dtype: Dtype) -> None:
    """Refuse a disk on which the run clearly cannot end.

    Args:
        folder: where the run works.
        config: of the run.
        trained: parameters that are trained.
        total: parameters of the policy.
        dtype: that a whole model is written in.

    Raises:
        InputError: the result, two checkpoints at most and what is there take more than there is.
    """
    weight = torch.finfo(getattr(torch, dtype)).bits // 8
    policy = 4 * trained if config.lora_r else weight * total
    result = weight * total if config.merge else policy
    number = min(2, int(1 / config.checkpoint_steps)) if 0 < config.checkpoint_steps < 1 else 0
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = result + number * (policy + 2 * 4 * trained) - there  # two moments each, in float32
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--output {config.output}: the disk has {free / 1e9:.3g} GB left, and the run writes "
            f"about {needed / 1e9:.3g} GB more: the result and {number} checkpoints. Make room, "
            "give a folder on another disk, or --checkpoint-steps 0 for no checkpoints."
        )


def _seal(folder: Path, step: int, fingerprint: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sync(folder, sizes)
    seal = CheckpointSeal(fingerprint=fingerprint, step=step, sizes=sizes)
    write_text(folder / _SEAL, seal.model_dump_json(indent=2) + "\n")


def _whole(folder: Path) -> CheckpointSeal | None:
    """The seal of a checkpoint all of whose files are there, at their sizes."""
    try:
        seal = CheckpointSeal.model_validate(from_json(read_bytes(folder / _SEAL, MOST_BYTES)))
        whole = all((folder / name).stat().st_size == size for name, size in seal.sizes.items())
    except (OSError, ValueError, ValidationError):
        return None
    return seal if whole else None
