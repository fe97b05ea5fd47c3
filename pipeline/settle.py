"""Resolves `method: auto` before the fingerprint is made, and checks options for effect.

The fingerprint must not contain `auto`: if some jobs' machines can run the pooler and others
cannot, a cache would mix two ways of scoring.
"""

from pathlib import Path
from typing import Any

from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Inputs, Manifest
from reflogp.pipeline.fingerprint import engine_input
from reflogp.stages.cache.folder import short
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.read.sources import is_hub_id
from reflogp.stages.precompute.score.engines.choose import METHODS, Choice, best_method
from reflogp.stages.progress import Console

_ONLY = {
    "transformers": ("batch_tokens",),
    "vllm": ("method", "head_dtype", "tensor_parallel_size", "gpu_memory_utilization",
             "max_num_batched_tokens", "engine_args"),
}  # fmt: skip


def settled_method(
    config: PrecomputeConfig,
    reference: Checkpoint,
    engine: Choice,
    inputs: Inputs,
    sealed: Manifest | None,
) -> tuple[PrecomputeConfig, Inputs]:
    """The configuration and inputs with `method` resolved.

    The method comes from a sealed cache or from the plan of another job. Only if there is neither
    is vLLM asked, which takes long to import.

    Args:
        config: as the user gave it.
        reference: the model that scores.
        engine: the engine that runs.
        inputs: of this configuration.
        sealed: manifest of the cache in the folder, if there is one.
    """
    if engine.name != "vllm" or config.method != "auto":
        return config, inputs
    ways = {}
    for method in METHODS:
        tried = config.model_copy(update={"method": method})
        its = inputs.model_copy(update={"engine": engine_input(tried, engine, reference.dtype)})
        ways[method] = tried, its
        if sealed is not None and sealed.inputs == its:
            return tried, its
    for tried, its in ways.values():
        plan = plan_record.read(config.cache / f"plan-{short(its)}")
        if plan is not None and plan.inputs == its:
            return tried, its
    if config.backend == "ray":
        from reflogp.stages.precompute.score.ray.cluster import on_a_node

        return ways[on_a_node(config, best_method, reference.folder)]
    return ways[best_method(reference.folder)]


def require_effect(config: PrecomputeConfig, engine: Choice, console: Console) -> None:
    """Refuse options without effect in this run, or warn about them.

    If the user named the engine, such an option is a mistake. If `auto` chose it, the same command
    may run with the other engine on another machine.

    Raises:
        InputError: an option belongs to an engine other than the one that the user named.
    """
    other = "vllm" if engine.name == "transformers" else "transformers"
    if idle := _given(config, _ONLY[other]):
        said = f"{', '.join(idle)}: no effect, because the engine is {engine.name}"
        if config.engine != "auto":
            raise InputError(f"{said}. Leave it out, or give --engine {other}.")
        console.warn(f"{said} ({engine.why})")
    if engine.name == "vllm" and config.method == "prompt_logprobs":
        for option in _given(config, ("head_dtype",)):
            console.warn(f"{option}: no effect with --method prompt_logprobs")
    if not is_hub_id(config.data) and Path(config.data).is_file():
        for option in _given(config, ("split",)):
            console.warn(f"{option}: no effect, because --data is one file and is read whole")


def _given(config: PrecomputeConfig, names: tuple[str, ...]) -> list[str]:
    """The options that differ from their defaults, as on the command line."""
    fields = PrecomputeConfig.model_fields

    def default(name: str) -> Any:
        return fields[name].get_default(call_default_factory=True)

    return [
        f"--{name.replace('_', '-')} {value}"
        for name in names
        if (value := getattr(config, name)) != default(name)
    ]
