"""Stage two on this machine: every layout's training against plain training in float32."""

import json
from pathlib import Path
from typing import Any, get_args

from torch import nn
from transformers import set_seed

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.doctor_report import Timing
from reflogp.data_schemas.errors import ReflogpError
from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.doctor.stage_one import cache_of, speed_of, timed_cache, timing_file
from reflogp.pipeline.doctor.task import (
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
from reflogp.pipeline.run import run_train
from reflogp.stages.doctor.truth import Step, dpo_curve, furthest, plain_model
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.policy import load_policy
from reflogp.stages.train.result.unfinished import METRICS

_STEPS, _BETA, _RATE = 3, 0.1, 1e-3
# How far a metric may be from float32 training, as a share of its largest value.
_FAR = {"float32": 2e-3, "bfloat16": 0.15}
_WAYS: dict[str, dict[str, Any]] = {"LoRA": {}, "all weights": {"lora_r": 0}}
_BATCH_SIZE = 4  # of the timing


@quiet_transformers()
def stage_two(task: Task) -> Found:
    """Train with LoRA and with all weights and, if thorough, in every layout."""
    cases = [
        Case(name, usual_dtype(), way, options)
        for name in task.families
        for way, options in _WAYS.items()
    ]
    first, timings = task.families[0], list[Timing]()
    if task.thorough:
        cases.append(Case(first, other_dtype(), "LoRA", {}))
        cases += [
            Case(first, usual_dtype(), f"layout {layout}", {"layout": layout}, by_name=True)
            for layout in get_args(TrainConfig.model_fields["layout"].annotation)
            if layout != "auto"
        ]
    checks = check_each("stage two", cases, lambda case: _trained(task, case))
    if task.thorough:
        checks.append(check("stage two", "speed", lambda: _timed(task, timings)))
    return Found(checks, timings)


def _trained(task: Task, case: Case) -> Finding:
    """Run stage two, and compare its curve with that of plain training in float32."""
    cache = cache_of(task, case.family, case.dtype)
    _require_sealed(cache)
    notes = Notes()
    config = TrainConfig(
        cache=cache,
        output=task.folder / slug("run", *case[:3]),
        beta=_BETA,
        learning_rate=_RATE,
        schedule="constant",
        warmup=0,
        epochs=_STEPS,
        batch_size=2,
        accumulation=len(PAIRS) // 2,  # a step takes all pairs, so their order plays no part
        checkpoint_steps=0,
        report_pairs=0,
        **case.options,
    )
    run_train(config, notes)
    lines = (config.output / METRICS).read_text(encoding="utf-8").splitlines()
    found = [
        Step(step["loss"], step["rewards/margins"], step["grad_norm"])
        for step in map(json.loads, lines)
    ]
    start = _start(config, task.checkpoint(case.family, case.dtype))
    true = dpo_curve(start, rows(cache)[0], steps=_STEPS, beta=_BETA, rate=_RATE)
    apart = furthest(found, true)
    reasons = [
        f"{name} is off by {share:.2g} of its largest value"
        for name, share in apart.items()
        if not share < _FAR[case.dtype]
    ]
    why = (
        f"{notes.after('batches: ')}; loss, margin and gradient norm within "
        f"{max(apart.values()):.1g} of float32"
    )
    return why, apart, reasons


def _start(config: TrainConfig, folder: Path) -> nn.Module:
    """The policy as training starts it, in float32 and without fused attention."""
    if not config.lora_r:
        return plain_model(folder, "float32", device())
    set_seed(config.seed)  # the new adapter is random
    policy: Any = load_policy(Checkpoint(folder, None, "float32"), config)
    policy.get_base_model().set_attn_implementation("eager")
    start: nn.Module = policy.to(device()).eval()
    return start


def _timed(task: Task, timings: list[Timing]) -> Finding:
    """Train the model of real size with LoRA, and add its speed to `timings`."""
    cache = timed_cache(task)
    _require_sealed(cache)
    forward, notes = Timing.model_validate_json(timing_file(task).read_bytes()), Notes()
    config = TrainConfig(
        cache=cache,
        output=task.folder / "run-of-real-size",
        batch_size=_BATCH_SIZE,
        accumulation=1,
        checkpoint_steps=0,
        report_pairs=0,
    )
    record = run_train(config, notes)
    seconds = record.pairs / record.pairs_per_second
    timing = forward.model_copy(
        update={"part": "stage two", "device": device(), "seconds": seconds}
    )
    timings.append(timing)
    return speed_of(timing, notes.after("batches: ")), {}, []


def _require_sealed(cache: Path) -> None:
    if not manifests.is_sealed(cache):
        raise ReflogpError("stage one made no cache")
