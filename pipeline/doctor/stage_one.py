"""Stage one on this machine: every engine's log-probs against a plain float32 forward."""

from pathlib import Path
from typing import Any

from reflogp.data_schemas.doctor_report import Check, Result, Timing
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.doctor.task import (
    MAX_LENGTH,
    PAIRS,
    Case,
    Finding,
    Found,
    Notes,
    Task,
    check,
    check_each,
    device,
    other_dtype,
    rows,
    slug,
    usual_dtype,
)
from reflogp.pipeline.plan import run_plan
from reflogp.pipeline.run import run_precompute
from reflogp.stages.doctor.families import VOCABULARY
from reflogp.stages.doctor.machine import fast_bfloat16
from reflogp.stages.doctor.shapes import config_of
from reflogp.stages.doctor.truth import all_logps, plain_model
from reflogp.stages.doctor.words import write_pairs
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.model.loading import cause
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.precompute.seal.compare import agreement, reasons_to_fail

_TIMED_LENGTH = 1024
# the least words of a prompt, the words of a response, the pairs
_TIMED = {"cuda": (100, 300, 512), "cpu": (90, 100, 12)}


@quiet_transformers()
def stage_one(task: Task) -> Found:
    """Score with the engine that `auto` chooses and, if thorough, with every other."""
    vllm = _vllm(task)
    engine = "transformers" if vllm.result == "off" else task.engine
    first, timings = task.families[0], list[Timing]()
    # a start of vLLM takes long on a CPU
    rest = "transformers" if engine == "auto" and device() == "cpu" else engine
    cases = [
        Case(name, usual_dtype(), "", {"engine": engine if name == first else rest})
        for name in task.families
    ]
    if task.thorough:
        cases.append(Case(first, other_dtype(), "", {"engine": rest}))
    if task.thorough and engine == "auto":
        stock = {"engine": "vllm", "method": "prompt_logprobs"}
        cases += [
            Case(first, usual_dtype(), "vLLM's prompt_logprobs", stock, by_name=True),
            Case(first, usual_dtype(), "transformers", {"engine": "transformers"}),
        ]
    checks = [vllm, *check_each("stage one", cases, lambda case: _scored(task, case))]
    if task.thorough:
        checks.append(check("stage one", "speed", lambda: _timed(task, engine, timings)))
    return Found(checks, timings)


def cache_of(task: Task, family: str, dtype: str, way: str = "") -> Path:
    """The cache of a tiny model. Without `way`, it is the one that training takes."""
    return task.folder / slug("cache", family, dtype, way)


def timed_cache(task: Task) -> Path:
    """The cache of the model of real size."""
    return task.folder / "cache-of-real-size"


def timing_file(task: Task) -> Path:
    """Where stage one leaves its timing for stage two, which trains on the same rows."""
    return task.folder / "timing.json"


def _vllm(task: Task) -> Check:
    """Whether vLLM is there, and can be imported."""
    if task.engine == "transformers":
        return _of_vllm("skipped", "--engine transformers was asked for")
    folder = task.checkpoint(task.families[0], usual_dtype())
    try:
        chosen = choose("vllm", folder)
    except InputError as error:
        return _of_vllm("skipped", str(error))
    try:
        from reflogp.stages.precompute.score.engines.vllm_engine import device_type

        runs_on = device_type()
        from vllm import LLM  # noqa: F401 - what the engine imports
    except Exception as error:  # noqa: BLE001 - a broken installation can raise anything
        why = f"{type(error).__name__}: {cause(error)}"
        return _of_vllm("off", f"{chosen.version} is installed, but cannot be imported: {why}")
    limits = ""
    if task.thorough and task.engine == "auto" and device() == "cpu":
        limits = (
            f". Each start takes long on a CPU: vLLM scores only {task.families[0]}, and "
            "transformers the others; --engine vllm scores all of them"
        )
    return _of_vllm("ok", f"{chosen.version}, on {runs_on}, {_runner(folder)}{limits}")


def _of_vllm(result: Result, why: str) -> Check:
    return Check(part="installed", name="vllm", result=result, why=why)


def _runner(folder: Path) -> str:
    """Which of its model runners vLLM takes for a pooling model."""
    try:
        from vllm import EngineArgs

        arguments: Any = EngineArgs(
            model=str(folder), runner="pooling", skip_tokenizer_init=True, max_model_len=MAX_LENGTH
        )
        second = getattr(arguments.create_engine_config(), "use_v2_model_runner", False)
    except Exception as error:  # noqa: BLE001 - the engine's own start says more
        return f"model runner unknown ({cause(error)})"
    return f"model runner V{2 if second else 1}"


def _scored(task: Task, case: Case) -> Finding:
    """Run stage one, and compare every log-prob with a plain float32 forward."""
    folder = task.checkpoint(case.family, case.dtype)
    cache = cache_of(task, case.family, case.dtype, case.way)
    # the tiny models need no compilation, nor all of a GPU's memory
    small = {"gpu_memory_utilization": 0.5, "engine_args": {"enforce_eager": True}}
    config = PrecomputeConfig(
        reference=str(folder),
        data=str(write_pairs(task.folder / "pairs.jsonl", PAIRS, VOCABULARY)),
        cache=cache,
        max_length=MAX_LENGTH,
        **(small if device() == "cuda" and case.options["engine"] != "transformers" else {}),
        **case.options,
    )
    engine = run_precompute(config, Notes()).engine
    pairs, cached = rows(cache)
    exact = all_logps(plain_model(folder, "float32", device()), pairs)
    usual = all_logps(plain_model(folder, case.dtype, device()), pairs)
    names = [("", "", "")] * len(cached)
    apart = agreement("float32", cached, exact, names)
    reasons = reasons_to_fail(
        apart,
        agreement(case.dtype, cached, usual, names),
        agreement(f"{case.dtype} against float32", usual, exact, names),
        case.dtype,
    )
    if sorted(len(pair.prompt) for pair in pairs) != sorted(words for words, _, _ in PAIRS):
        reasons.append(f"the {len(pairs)} rows of the cache are not the {len(PAIRS)} of the data")
    why = (
        f"{engine.name} {engine.version}, {engine.method}, on {engine.device}; RMS "
        f"{apart.rms:.1g}, at most {apart.max:.1g} nats per token from float32"
    )
    return why, {"rms": apart.rms, "max": apart.max}, reasons


def _timed(task: Task, engine: str, timings: list[Timing]) -> Finding:
    """Run stage one on a model of real size, and add its speed to `timings`."""
    folder, shape, layers = task.real_size()
    prompt, response, pairs = _TIMED[device()]
    lengths = [(prompt + number, response, response) for number in range(pairs)]
    data = write_pairs(task.folder / "long.jsonl", lengths, config_of(shape).vocab_size)
    shared = {"reference": str(folder), "data": str(data), "max_length": _TIMED_LENGTH}
    config = {"cache": timed_cache(task), "engine": engine, "verify_sample": 0,
              "dtype": "auto" if fast_bfloat16() else "float32"}  # fmt: skip
    manifest = run_precompute(PrecomputeConfig.model_validate(shared | config), Notes())
    counts, estimate = run_plan(PlanConfig.model_validate(shared | {"sample": 0}), Notes())
    timing = Timing(
        part="stage one",
        shape=f"{shape}, {layers} layers",
        dtype=manifest.engine.dtype,
        device=manifest.engine.device,
        rows=counts.rows,
        tokens=round(counts.sequence),
        seconds=manifest.timing.scoring_seconds,
        operations=estimate.flops,
    )
    timing_file(task).write_text(timing.model_dump_json(), encoding="utf-8")
    timings.append(timing)
    return speed_of(timing, manifest.engine.name), {}, []


def speed_of(timing: Timing, how: str) -> str:
    """A timing in one line."""
    return (
        f"{timing.shape}, {timing.dtype}, {how}: {timing.tokens / timing.seconds:,.0f} sequence "
        f"tokens/s, {timing.reached / 1e12:.3g} TFLOP/s of a forward"
    )
