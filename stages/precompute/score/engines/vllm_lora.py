"""A LoRA adapter in vLLM: what the engine needs to know of it, and which adapters it cannot run.

vLLM keeps the adapter beside the weights, as training does, so it works on quantised checkpoints
too. It adds low-rank products to linear layers and nothing else: what PEFT can train besides
(whole modules, embeddings, the head, biases, DoRA's magnitudes) is seen from the names of the
weights and refused, since a reference without it would be another model.
"""

from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.adapter import tensor_shapes

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM has room
_REMEDY = (
    "Give --engine transformers; or merge it into the checkpoint with PEFT (merge_and_unload) and "
    "give the result as --reference."
)


def arguments(adapter: Path | None) -> dict[str, Any]:
    """Arguments of vllm.LLM for `adapter`, none without one.

    Raises:
        InputError: vLLM cannot run this adapter.
    """
    if adapter is None:
        return {}
    shapes = tensor_shapes(adapter)
    strange = [name for name in shapes if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    modules = {name.rsplit(".lora_", 1)[0].rpartition(".")[2] for name in shapes}
    strange += [name for name in shapes if ".lm_head.lora_" in name]
    if strange:
        raise InputError(
            f"{adapter}: vLLM runs LoRA on linear layers only, and the adapter holds {strange[0]}. "
            f"{_REMEDY}"
        )
    rank = max(shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight"))
    room = next((room for room in _RANKS if room >= rank), None)
    if room is None:
        raise InputError(f"{adapter}: vLLM runs ranks up to {_RANKS[-1]}, not {rank}. {_REMEDY}")
    return {
        "enable_lora": True,
        "max_lora_rank": room,
        # Layers that the adapter leaves alone run as ever; the head among them, whose LoRA layer
        # would expect one row a sequence.
        "lora_target_modules": sorted(modules),
    }


def request(adapter: Path | None) -> Any:
    """What goes with each request to the engine; None without an adapter."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("reference", 1, str(adapter))


def load(engine: Any, adapter: Path) -> None:
    """Load `adapter` now, so that what vLLM has against it is said before anything is scored.

    Raises:
        InputError: vLLM cannot run this adapter.
    """
    try:
        engine.llm_engine.add_lora(request(adapter))
    except Exception as error:
        engine.llm_engine.engine_core.shutdown()
        raise InputError(f"{adapter}: vLLM cannot run this adapter: {error}. {_REMEDY}") from error
