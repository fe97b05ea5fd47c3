"""What to check, and how one way to run a stage becomes a line of the report."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from reflogp.data_schemas.doctor_report import Check, Part, Result, Timing
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.console import TerminalConsole
from reflogp.stages.cache.opened import Cache
from reflogp.stages.doctor import shapes
from reflogp.stages.doctor.families import FAMILIES, VOCABULARY, config_of, make
from reflogp.stages.doctor.truth import PairOfIds
from reflogp.stages.doctor.words import Lengths, save_tokenizer
from reflogp.stages.model.loading import cause
from reflogp.stages.precompute.score.engines.protocol import Logps
from reflogp.stages.progress import Advance

PAIRS: tuple[Lengths, ...] = (
    (60, 70, 50), (60, 20, 45), (33, 40, 64), (8, 5, 9), (8, 17, 3), (1, 1, 3), (48, 31, 32),
    (21, 60, 12),
)  # fmt: skip
"""Shorter and longer than every window of the tiny models; some prompts have two pairs."""
MAX_LENGTH = 256

Finding = tuple[str, dict[str, float], list[str]]
"""What was found, the figures, and what is wrong with them."""


class Task(NamedTuple):
    """What to check.

    Attributes:
        folder: to work in.
        families: the architectures, by their names in FAMILIES.
        engine: --engine of stage one.
        thorough: whether the first architecture is run in every other way too (engines, layouts,
            dtypes), and a model of real size timed.
    """

    folder: Path
    families: tuple[str, ...]
    engine: str
    thorough: bool

    def checkpoint(self, family: str, dtype: str) -> Path:
        """A tiny random model with its tokenizer; saved on the first call."""
        folder = self.folder / slug(family, dtype)
        if not folder.is_dir():
            kind, more = FAMILIES[family]
            make(folder, config_of(kind, **more))
            if dtype != "float32":
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
                model.save_pretrained(folder)
            save_tokenizer(folder, VOCABULARY)
        return folder

    def real_size(self) -> tuple[Path, shapes.Shape, int]:
        """Some layers of a model of real size, in bfloat16, with the shape and their number."""
        shape, layers = _REAL_SIZE[device()]
        folder = self.folder / shape
        if not folder.is_dir():
            shapes.make_checkpoint(folder, shape, layers=layers)
            save_tokenizer(folder, shapes.config_of(shape).vocab_size)
        return folder, shape, layers


# The layers of Llama 3.1 8B, of which four fit into 16 GB; a model for a CPU elsewhere.
_REAL_SIZE: dict[str, tuple[shapes.Shape, int]] = {
    "cuda": ("llama-8b", 4), "cpu": ("smollm2-135m", 6),
}  # fmt: skip


class Found(NamedTuple):
    """What the checks of a stage found."""

    checks: list[Check]
    timings: list[Timing]


class Case(NamedTuple):
    """One way to run a stage.

    Attributes:
        family, dtype: of the model.
        way: the options that differ from the defaults, in words.
        options: the same for the stage's configuration.
        by_name: whether they ask for a way that this machine may not have.
    """

    family: str
    dtype: str
    way: str
    options: dict[str, Any]
    by_name: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(filter(None, (self.family, self.dtype, self.way)))


class Notes:
    """A Console that keeps what a stage says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self.said.append(message)

    def warn(self, message: str) -> None:
        """See reflogp.stages.progress.Console."""
        self.said.append(message)

    def track(self, what: str, total: float | None, unit: str) -> AbstractContextManager[Advance]:
        """See reflogp.stages.progress.Console."""
        return nullcontext(lambda amount, note="": None)

    def after(self, beginning: str) -> str:
        """The rest of the first message that begins so."""
        found = (said.removeprefix(beginning) for said in self.said if said.startswith(beginning))
        return next(found, "")


def device() -> str:
    """The type of device that the stages run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usual_dtype() -> str:
    """The dtype in which people run models here."""
    return "bfloat16" if device() == "cuda" else "float32"


def other_dtype() -> str:
    """The other of the two dtypes."""
    return "float32" if device() == "cuda" else "bfloat16"


def slug(*words: str) -> str:
    """Words as the name of a folder."""
    return "-".join(filter(None, words)).replace(" ", "-")


def rows(cache: Path) -> tuple[list[PairOfIds], list[Logps]]:
    """The pairs of a cache, and the log-probs of chosen and rejected of each in turn."""
    found = list(Cache(cache))
    pairs = [PairOfIds(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in found]
    return pairs, [row[f"ref_{side}_logps"] for row in found for side in ("chosen", "rejected")]


def check_each(part: Part, cases: Iterable[Case], run: Callable[[Case], Finding]) -> list[Check]:
    """Run every case. An error is a result too."""
    return [check(part, case.name, lambda: run(case), by_name=case.by_name) for case in cases]  # noqa: B023


def check(part: Part, name: str, run: Callable[[], Finding], *, by_name: bool = False) -> Check:
    """Run one check, and make a line of what it finds or raises.

    Args:
        part: of the report.
        name: of the check, for people.
        run: does the check.
        by_name: whether an InputError only says that this machine does not have what was asked for.
    """
    TerminalConsole().say(f"{part}: {name} ...")
    result: Result = "ok"
    figures: dict[str, float] = {}
    try:
        why, found, reasons = run()
        # JSON has neither NaN nor infinity
        figures = {name: value for name, value in found.items() if isfinite(value)}
        if reasons:
            result, why = "off", f"{'; '.join(reasons)} ({why})"
    except InputError as error:
        result, why = "skipped" if by_name else "off", str(error)
    except Exception as error:  # noqa: BLE001 - the reason is the result
        result, why = "off", f"{type(error).__name__}: {cause(error)}"
    return Check(part=part, name=name, result=result, why=why, figures=figures)
