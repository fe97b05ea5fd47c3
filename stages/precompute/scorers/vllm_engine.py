"""What both vLLM scorers share: the environment vLLM must find, and starting and stopping it."""

import os
from pathlib import Path
from typing import Any

from data_schemas.errors import ReflogpError
from stages.precompute.scorers import vllm_lora


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


def start_engine(arguments: dict[str, Any], adapter: Path | None = None) -> Any:
    """Start vllm.LLM with `arguments`, added to what every scorer wants, and load the adapter.

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
        engine = LLM(**(wanted_by_all | vllm_lora.arguments(adapter) | arguments))
    except Exception as error:
        raise ReflogpError(
            f"vLLM could not start: {error}. Give --engine transformers, or mend --engine-args."
        ) from error
    if adapter is not None:
        vllm_lora.load(engine, adapter)
    return engine


def stop_engine(engine: Any) -> None:
    """End the engine's process, which gives its memory back."""
    engine.llm_engine.engine_core.shutdown()
