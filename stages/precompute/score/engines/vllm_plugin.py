"""The interface between the scorer and the model inside vLLM: names, and the form of a request.

`register` is the `vllm.general_plugins` entry point. vLLM calls it in each of its processes, even
in programs that do not use reflogp, so it only adds names. A model is built when its name is
requested. Names keep the suffix of their architecture, by which vLLM recognizes models that
generate text.
"""

from typing import Any

import numpy as np

from reflogp.stages.precompute.score.engines.protocol import Ids

PREFIX = "Reflogp"
_MODELS = "reflogp.stages.precompute.score.engines.vllm_model"
_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def pooling_name(architecture: str) -> str:
    """The name under which `architecture` is registered as a pooling model."""
    return PREFIX + architecture


def register() -> None:
    """Register a pooling model for every model of vLLM that generates text."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture in list(ModelRegistry.get_supported_archs()):
        if architecture.startswith(PREFIX) or not architecture.endswith(_SUFFIXES):
            continue
        name = pooling_name(architecture)
        ModelRegistry.register_model(name, f"{_MODELS}:{name}")
        # vLLM looks up adjustments for an architecture (block sizes, kernels) by name
        if architecture in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]


def pack(rows: Ids, targets: Ids) -> dict[str, bytes]:
    """A request as `PoolingParams.extra_kwargs`, which vLLM sends to its process as msgpack.

    Args:
        rows: int32 [n], ascending positions in the sequence; one can occur more than once.
        targets: int32 [n]; the answer is the log-prob of targets[i] after rows[i].
    """
    return {"rows": rows.tobytes(), "targets": targets.tobytes()}


def unpack(packed: dict[str, Any] | None) -> tuple[Ids, Ids] | None:
    """The rows and targets; None if the request is not ours, for example in vLLM's profiling."""
    if not packed or not packed.keys() >= {"rows", "targets"}:
        return None
    return np.frombuffer(packed["rows"], np.int32), np.frombuffer(packed["targets"], np.int32)
