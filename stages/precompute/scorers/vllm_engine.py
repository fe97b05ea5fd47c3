"""What both vLLM scorers share: environment, start, end, and the plain way beside the engine."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_schemas.errors import ReflogpError
from data_schemas.manifest import Dtype
from stages.memory import lacks_room
from stages.precompute.scorers.protocol import Logps, Request


def prepare_environment() -> None:
    """Defaults that must stand before vLLM is imported; the user's own settings win."""
    cores = sorted(os.sched_getaffinity(0))
    defaults = {
        # what goes wrong is raised; the rest is not for the user
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library",  # a warning that a CPU has no Triton
        "PYTHONWARNINGS": "ignore",
        # without these vLLM runs its CPU engine on one thread
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        # one token more than the model's own limit, which is never computed
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def device_type() -> str:
    """The kind of device that vLLM runs on here: "cpu", "cuda" and so on."""
    prepare_environment()
    from vllm.platforms import current_platform  # vLLM reads its environment when imported

    return str(current_platform.device_type)


def start_engine(arguments: dict[str, Any]) -> Any:
    """Start vllm.LLM with `arguments`, added to what every scorer wants.

    Raises:
        ReflogpError: the engine does not start.
    """
    wanted_by_all = {
        # Compiling the model takes minutes on a CPU and gains nothing in a prefill.
        "enforce_eager": device_type() == "cpu",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    from vllm import LLM

    try:
        return LLM(**(wanted_by_all | arguments))
    except Exception as error:
        raise ReflogpError(
            f"vLLM could not start: {error}. Give --engine transformers, or mend --engine-args."
        ) from error


def stop_engine(engine: Any) -> None:
    """End the engine's process, which gives its memory back."""
    engine.llm_engine.engine_core.shutdown()


def rescore(model: Path, dtype: Dtype, requests: Sequence[Request]) -> list[Logps]:
    """See Scorer.rescore: transformers is loaded for this call alone, beside the engine.

    vLLM keeps most of a GPU's memory for itself; where the weights do not fit into the rest, the
    CPU takes them.
    """
    from stages.precompute.scorers.transformers import TransformersScorer

    on_gpu, on_cpu = (lacks_room(model, dtype, device) for device in ("cuda", "cpu"))
    if on_gpu and on_cpu:
        raise ReflogpError(on_cpu)
    scorer = TransformersScorer(model, dtype=dtype, device="cpu" if on_gpu else "cuda")
    try:
        return scorer.rescore(requests)
    finally:
        scorer.close()
