"""What the user left open or asked for in vain, settled before the fingerprint is made.

`method: auto` must not stand in the fingerprint: a cache would mix two ways of scoring where one
job's machine can run the pooler, and another's cannot.
"""

from pathlib import Path
from typing import Any

from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Inputs, Manifest
from reflogp.pipeline.fingerprint import engine_input
from reflogp.stages.cache.folder import short
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
    reference: Path,
    engine: Choice,
    dtype: str,
    inputs: Inputs,
    sealed: Manifest | None,
) -> tuple[PrecomputeConfig, Inputs]:
    """The configuration and the inputs with the way in which vLLM scores.

    A cache that is sealed, or planned by another job, says how it is scored; vLLM, which takes
    long to import, is asked only where there is none.

    Args:
        config: as the user gave it.
        reference: folder of the checkpoint.
        engine: that runs.
        dtype: of weights and forward.
        inputs: of this configuration.
        sealed: the cache in the folder, if there is one.
    """
    if engine.name != "vllm" or config.method != "auto":
        return config, inputs
    ways = {}
    for method in METHODS:
        tried = config.model_copy(update={"method": method})
        its = inputs.model_copy(update={"engine": engine_input(tried, engine, dtype)})
        ways[method] = tried, its
        if sealed is not None and sealed.inputs == its:
            return tried, its
    for tried, its in ways.values():
        plan = plan_record.read(config.cache / f"plan-{short(its)}")
        if plan is not None and plan.inputs == its:
            return tried, its
    if config.backend == "ray":
        from reflogp.stages.precompute.score.ray.cluster import on_a_node

        return ways[on_a_node(config, best_method, reference)]
    return ways[best_method(reference)]


def require_effect(config: PrecomputeConfig, engine: Choice, console: Console) -> None:
    """Refuse or tell of options that change nothing in this run.

    Where the engine was asked for by name, such an option is a mistake; where `auto` took it, the
    same command may well run elsewhere with the other one.

    Raises:
        InputError: there is one that belongs to another engine than the one that was asked for.
    """
    other = "vllm" if engine.name == "transformers" else "transformers"
    if idle := _given(config, _ONLY[other]):
        said = f"{', '.join(idle)}: of no effect, for the engine is {engine.name}"
        if config.engine != "auto":
            raise InputError(f"{said}. Leave it out, or give --engine {other}.")
        console.warn(f"{said} ({engine.why})")
    if engine.name == "vllm" and config.method == "prompt_logprobs":
        for option in _given(config, ("head_dtype",)):
            console.warn(f"{option}: of no effect with --method prompt_logprobs")
    if not is_hub_id(config.data) and Path(config.data).is_file():
        for option in _given(config, ("split",)):
            console.warn(f"{option}: of no effect, for --data is one file; all of it is read")


def _given(config: PrecomputeConfig, names: tuple[str, ...]) -> list[str]:
    """Those of the options that are not what they are by default, as they are given."""
    fields = PrecomputeConfig.model_fields

    def default(name: str) -> Any:
        return fields[name].get_default(call_default_factory=True)

    return [
        f"--{name.replace('_', '-')} {value}"
        for name in names
        if (value := getattr(config, name)) != default(name)
    ]
