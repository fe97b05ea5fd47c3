"""Seals checkpoints, so a killed run resumes only from complete ones with its own settings."""

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
    """A file in a checkpoint's folder, written when all its other files are on disk."""

    fingerprint: str
    step: int
    sizes: dict[str, int]


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint that Trainer has written as complete."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Sync the files, then seal them."""
        PartialState().wait_for_everyone()  # each process writes its random state or its shard
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _seal(folder, state.global_step, self._fingerprint)


def whole_checkpoints(folder: Path, fingerprint: str) -> list[Path]:
    """Complete checkpoints of the run with this fingerprint in `folder`, the newest last."""
    seals = {path: _whole(path) for path in folder.glob(_PATTERN)}
    steps = {p: seal.step for p, seal in seals.items() if seal and seal.fingerprint == fingerprint}
    return sorted(steps, key=lambda path: steps[path])


def require_room(folder: Path, config: TrainConfig, trained: int, total: int, dtype: Dtype) -> None:
    """Refuse a disk that is clearly too small for the run.

    Args:
        folder: where the run works. Its files count as already written.
        config: of the run.
        trained: number of trained parameters.
        total: number of parameters of the policy.
        dtype: that a full model is written in.

    Raises:
        InputError: the result and up to two checkpoints need more space than the disk has left.
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
            f"--output {config.output}: the disk has {free / 1e9:.3g} GB left, and the run needs "
            f"about {needed / 1e9:.3g} GB for the result and {number} checkpoints. Free some "
            "space, use a folder on another disk, or give --checkpoint-steps 0 for no checkpoints."
        )


def _seal(folder: Path, step: int, fingerprint: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sync(folder, sizes)
    seal = CheckpointSeal(fingerprint=fingerprint, step=step, sizes=sizes)
    write_text(folder / _SEAL, seal.model_dump_json(indent=2) + "\n")


def _whole(folder: Path) -> CheckpointSeal | None:
    """The seal of a checkpoint whose files all exist with the right sizes; else None."""
    try:
        seal = CheckpointSeal.model_validate(from_json(read_bytes(folder / _SEAL, MOST_BYTES)))
        whole = all((folder / name).stat().st_size == size for name, size in seal.sizes.items())
    except (OSError, ValueError, ValidationError):
        return None
    return seal if whole else None
