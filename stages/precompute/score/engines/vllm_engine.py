"""Shared by both vLLM scorers: environment, start and stop of the engine, and rescoring."""

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import read_json
from reflogp.stages.model.memory import lacks_room
from reflogp.stages.precompute.score.engines import vllm_lora
from reflogp.stages.precompute.score.engines.protocol import Logps, Request
from reflogp.stages.precompute.score.engines.vllm_log import QUIET, EngineLog

_SOCKETS = "VLLM_RPC_BASE_PATH"
_CORES = "VLLM_CPU_OMP_THREADS_BIND"
_PATIENCE_SECONDS = 1.0  # between two checks that the engine is alive


def prepare_environment() -> None:
    """Set environment variables before vLLM is imported. Values that the user set win."""
    _set_defaults({
        # errors are raised, and other output is not for the user
        "VLLM_LOGGING_LEVEL": QUIET,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library",  # hides the warning that a CPU has no Triton
        "PYTHONWARNINGS": "ignore",
        # to ask PyTorch for a GPU breaks it in forked processes
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # one token above the model's limit, which is never computed
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    })  # fmt: skip
    if _SOCKETS not in os.environ:  # vLLM leaves its sockets behind
        os.environ[_SOCKETS] = folder = tempfile.mkdtemp(prefix="reflogp-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _set_defaults(values: dict[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)


def device_type() -> str:
    """The type of device that vLLM runs on: "cpu", "cuda" and so on."""
    prepare_environment()
    from vllm.platforms import current_platform  # vLLM reads the environment on import

    return str(current_platform.device_type)


def start_engine(arguments: dict[str, Any], adapter: Path | None = None) -> tuple[Any, EngineLog]:
    """Start vllm.LLM with `arguments` on top of the common ones, and load the adapter.

    Returns:
        The LLM, and the log of its processes.

    Raises:
        ReflogpError: the engine does not start, or would score with another window of attention.
    """
    _require_same_window(Path(arguments["model"]), arguments["max_model_len"])
    wanted_by_all: dict[str, Any] = {
        # compiling the model takes minutes on a CPU, and a prefill gains nothing from it
        "enforce_eager": device_type() == "cpu",
        "compilation_config": compilation(device_type()),
        # a class that could also take images runs without its towers, on text alone
        "language_model_only": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    from vllm import LLM

    if device_type() == "cpu":
        _share_cores(arguments.get("tensor_parallel_size", 1))
    log = EngineLog()
    try:
        with log.receiving():
            engine = LLM(**(wanted_by_all | vllm_lora.arguments(adapter) | arguments))
    except Exception as error:
        raise ReflogpError(
            f"vLLM could not start: {log.root_cause(error)}. Give --engine transformers, or fix "
            "--engine-args."
        ) from error
    if adapter is not None:
        vllm_lora.load(engine, adapter)
    return engine, log


def compilation(device: str) -> dict[str, Any]:
    """vLLM's `compilation_config` on this type of device."""
    if device == "cpu":
        # vLLM's kernel for this misreads tensors of shape [tokens, heads, size]; torch does not
        return {"custom_ops": ["-rotary_embedding"]}
    # graphs are for steps of up to 512 tokens, and a step of prompts has thousands
    return {"cudagraph_mode": "NONE"}


def _require_same_window(folder: Path, longest: int) -> None:
    """Refuse a model whose sequences are longer than a window that is wider in vLLM."""
    config = read_json(folder / "config.json")
    names, window = config.get("architectures") or [], config.get("sliding_window")
    if "Cohere2ForCausalLM" in names and isinstance(window, int) and longest > window:
        raise ReflogpError(
            f"vLLM's Cohere2ForCausalLM attends to one token more than its window of {window}, and "
            f"a sequence can have {longest}. Give --engine transformers, as training runs it."
        )


def _share_cores(ranks: int) -> None:
    """Assign cores to each rank of an engine on the CPU. For two ranks, vLLM expects `0,2|1,3`."""
    available = sorted(os.sched_getaffinity(0))
    # without these, the engine runs on one thread; on a GPU, vLLM sets the number of threads
    _set_defaults({
        "OMP_NUM_THREADS": str(len(available)),
        _CORES: ",".join(map(str, available)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
    })  # fmt: skip
    bound = os.environ[_CORES].split("|")
    cores = ",".join(bound).split(",")
    if len(bound) != ranks and all(core.isdigit() for core in cores):
        parts = [cores[rank::ranks] or cores[-1:] for rank in range(ranks)]
        os.environ[_CORES] = "|".join(map(",".join, parts))


@contextmanager
def death_explained(engine: Any, log: EngineLog) -> Iterator[None]:
    """In the block, the death of an engine process is an error that gives the reason.

    If a process is killed, for example when memory runs out, vLLM can wait for its answer forever.

    Raises:
        ReflogpError: in place of vLLM's own error, which only points to a log.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    done = threading.Event()
    client = engine.llm_engine.engine_core

    def watch() -> None:
        while not done.wait(_PATIENCE_SECONDS):
            if client.resources.engine_dead:
                client.outputs_queue.put_nowait(EngineDeadError())
                return

    # an engine in this process has no such client, and cannot die alone
    if hasattr(client, "resources") and hasattr(client, "outputs_queue"):
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except EngineDeadError as error:
        raise ReflogpError(
            f"vLLM's engine died while scoring: {log.root_cause(error)}. Finished shards are "
            "kept: run the command again, with a smaller --max-num-batched-tokens or "
            "--gpu-memory-utilization if it ran out of memory."
        ) from error
    finally:
        done.set()


def uncounted() -> None:
    """Ignore an answer."""


def counting(answered: Callable[[], None]) -> Callable[..., Any]:
    """The `use_tqdm` of a call to vLLM that calls `answered` after each answer and shows nothing.

    One call has all requests of a shard, so the engine is never without work in between.
    """
    from tqdm import tqdm

    class Counter(tqdm):  # type: ignore[misc]  # tqdm is untyped
        def update(self, n: float | None = 1) -> None:
            for _ in range(int(n or 0)):
                answered()

        def display(self, *_: Any, **__: Any) -> None:
            """Show nothing."""

    return Counter


def stop_engine(engine: Any) -> None:
    """End the engine's process, which releases its memory."""
    engine.llm_engine.engine_core.shutdown()


def rescore(model: Checkpoint, requests: Sequence[Request]) -> list[Logps]:
    """See Scorer.rescore. transformers is loaded for this call only, next to the engine.

    vLLM reserves most of a GPU's memory. If the weights do not fit in the rest, this runs on the
    CPU.
    """
    from reflogp.stages.precompute.score.engines.transformers import TransformersScorer

    on_gpu, on_cpu = (lacks_room(model.folder, model.dtype, device) for device in ("cuda", "cpu"))
    if on_gpu and on_cpu:
        raise ReflogpError(on_cpu)
    device = "cpu" if on_gpu else "cuda"
    scorer = TransformersScorer(model, device=device, eager=True)
    try:
        return scorer.rescore(requests)
    finally:
        scorer.close()
