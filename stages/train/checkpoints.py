"""Checkpoints that a killed run goes on from: only those that were written whole, by this run."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import ValidationError
from pydantic_core import from_json
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_schemas.atomic import write_text
from data_schemas.record import Record
from stages.train.switch import sync

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


def _seal(folder: Path, step: int, fingerprint: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sync(folder, sizes)
    seal = CheckpointSeal(fingerprint=fingerprint, step=step, sizes=sizes)
    write_text(folder / _SEAL, seal.model_dump_json(indent=2) + "\n")


def _whole(folder: Path) -> CheckpointSeal | None:
    """The seal of a checkpoint all of whose files are there, at their sizes."""
    try:
        seal = CheckpointSeal.model_validate(from_json((folder / _SEAL).read_bytes()))
        whole = all((folder / name).stat().st_size == size for name, size in seal.sizes.items())
    except (OSError, ValueError, ValidationError):
        return None
    return seal if whole else None
