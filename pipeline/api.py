"""Both stages as Python functions. They take the options of the command, by their YAML names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.run_record import RunRecord
from reflogp.pipeline.config import build, require_known
from reflogp.pipeline.console import LogConsole, TerminalConsole
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.cache.opened import Cache
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.progress import Console
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.unfinished import METRICS

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True, repr=False)
class Run:
    """A finished training run.

    Attributes:
        output: folder of the adapter or model, with its card, record and metrics.
        record: the inputs, settings and results of the run.
    """

    output: Path
    record: RunRecord

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each step and evaluation, in order, under TRL's names."""
        lines = (self.output / METRICS).read_bytes().splitlines()
        return [from_json(line) for line in lines]

    def __repr__(self) -> str:
        first, last = self.record.first, self.record.last
        return (
            f"Run({str(self.output)!r}: {self.record.steps:,} steps, loss {first.loss:.4f} to "
            f"{last.loss:.4f}, margin {first.margin:.4f} to {last.margin:.4f})"
        )


def precompute(
    *,
    reference: str | Path,
    data: str | Path,
    cache: str | Path,
    progress: bool = False,
    **options: Any,
) -> Cache:
    """Stage one: score the preferences under the frozen reference, unless `cache` is up to date.

    Args:
        reference: folder or Hub id of the checkpoint that training will start from.
        data: file, folder or Hub id of the preferences.
        cache: folder or URL of the cache to write.
        progress: show progress bars and remarks on stderr; if False, remarks and warnings go to
            the logger `reflogp`.
        options: any other option of `reflogp precompute`, by its YAML name.

    Returns:
        The sealed cache.

    Raises:
        InputError: the data, the model or an option cannot be used.
        ReflogpError: the engine failed.
    """
    given = {"reference": reference, "data": data, "cache": cache, **options}
    config = _config(PrecomputeConfig, "precompute", given)
    if config.share is not None:
        raise InputError(
            "reflogp.precompute(): share makes one part of a cache, so there is no cache to "
            "return. Run `reflogp precompute --share` in each job, then reflogp.open()."
        )
    run_precompute(config, _console(progress=progress))
    return Cache(config.cache)


def train(
    *, cache: Cache | str | Path, output: str | Path, progress: bool = False, **options: Any
) -> Run:
    """Stage two: train the policy against a sealed cache, unless `output` is up to date.

    Args:
        cache: the result of `open` or `precompute`, or a folder or URL.
        output: folder for the adapter or model.
        progress: as in `precompute`.
        options: any other option of `reflogp train`, by its YAML name: loss, beta, lora_r, ...

    Raises:
        InputError: the cache is not sealed, or its reference is not the policy; or an option cannot
            be used.
        ReflogpError: training diverged, or changed nothing.
    """
    config = _config(TrainConfig, "train", {"cache": cache, "output": output, **options})
    return Run(config.output, run_train(config, _console(progress=progress)))


def open(cache: str | Path) -> Cache:  # noqa: A001 - as in gzip.open
    """Open the sealed cache in a folder or at a URL.

    Raises:
        InputError: there is no cache, it was never sealed, or its manifest is damaged.
    """
    return Cache(cache)


def _config(model: type[Config], call: str, given: Mapping[str, Any]) -> Config:
    require_known(given, model.model_fields, f"reflogp.{call}()", "option")
    return build(model, {}, {name: _plain(value) for name, value in given.items()})


def _plain(value: Any) -> Any:
    """Convert a value to its YAML form. An opened cache becomes its folder or URL."""
    if isinstance(value, Cache):
        return value.folder
    return str(value) if isinstance(value, Path) else value


def _console(*, progress: bool) -> Console:
    return TerminalConsole() if progress else LogConsole()
