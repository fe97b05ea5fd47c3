"""LoRA adapters in vLLM: the engine's arguments, and a check for adapters that it cannot run.

vLLM keeps the adapter separate from the weights, as training does, so quantized checkpoints work
too. It supports low-rank products on linear layers only. PEFT can also train whole modules,
embeddings, the head, biases and DoRA's magnitudes. Such adapters are recognized by the names of
their weights and refused, since a reference without these parts would be another model.
"""

from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.adapter import tensor_shapes

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of max_lora_rank that vLLM accepts
_REMEDY = (
    "Give --engine transformers, or merge the adapter into the checkpoint with PEFT "
    "(merge_and_unload) and give the result as --reference."
)


def arguments(adapter: Path | None) -> dict[str, Any]:
    """Arguments of vllm.LLM for `adapter`; empty without an adapter.

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
            f"{adapter}: vLLM supports LoRA on linear layers only, and the adapter has "
            f"{strange[0]}. {_REMEDY}"
        )
    rank = max(shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight"))
    room = next((room for room in _RANKS if room >= rank), None)
    if room is None:
        raise InputError(
            f"{adapter}: vLLM supports ranks up to {_RANKS[-1]}, not {rank}. {_REMEDY}"
        )
    return {
        "enable_lora": True,
        "max_lora_rank": room,
        # Other layers stay unwrapped. In particular the head, whose LoRA layer would expect one row
        # per sequence.
        "lora_target_modules": sorted(modules),
    }


def request(adapter: Path | None) -> Any:
    """The argument for each request to the engine; None without an adapter."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("reference", 1, str(adapter))


def load(engine: Any, adapter: Path) -> None:
    """Load `adapter` before anything is scored, so vLLM's objections come early.

    Raises:
        InputError: vLLM cannot run this adapter.
    """
    try:
        engine.llm_engine.add_lora(request(adapter))
    except Exception as error:
        engine.llm_engine.engine_core.shutdown()
        raise InputError(f"{adapter}: vLLM cannot run this adapter: {error}. {_REMEDY}") from error
