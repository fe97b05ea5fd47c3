"""Runs `reflogp plan`: estimates both stages, and formats the estimate as a table."""

import math
from typing import TYPE_CHECKING

from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.resolve import resolve_checkpoint
from reflogp.pipeline.summary import Lines, human_size
from reflogp.stages.estimate.config import DEVICES, PlanConfig
from reflogp.stages.model.loading import quantization, untrainable
from reflogp.stages.progress import Console

if TYPE_CHECKING:  # they import torch
    from reflogp.stages.estimate.counts import TokenCounts
    from reflogp.stages.estimate.estimate import Estimate, Memory

_ROOM = 0.9  # of a GPU's memory, for weights in stage one


@quiet_transformers()
def run_plan(config: PlanConfig, console: Console) -> "tuple[TokenCounts, Estimate]":
    """Estimate both stages, without loading weights.

    Raises:
        InputError: the data, the model or the options cannot be used.
    """
    from reflogp.stages.estimate.counts import count
    from reflogp.stages.estimate.estimate import estimate
    from reflogp.stages.estimate.shape import shape_of

    trusted = config.trust_remote_code
    reference = resolve_checkpoint(
        config.reference, config.adapter, "reference", config.revision, trusted=trusted
    )
    if kind := quantization(reference.folder):
        console.warn(untrainable(kind))
    shape = shape_of(reference.folder, config.lora_r, config.lora_targets, trusted=trusted)
    counts = count(config, reference, console)
    weight_bytes = 4 if reference.dtype == "float32" else 2
    return counts, estimate(config, counts, shape, weight_bytes)


def plan_rows(config: PlanConfig, counts: "TokenCounts", found: "Estimate") -> Lines:
    """The estimate of both stages and its basis, as the rows of a table."""
    hours = found.seconds / 3600
    rows = [
        ("rows", _rows(counts)),
        ("tokens", f"{counts.prompt:,.0f} prompt, {counts.response:,.0f} response"),
        ("", f"{counts.sequence:,.0f} in prompt + response sequences, {counts.distinct:,.0f} "
         f"({counts.distinct / counts.sequence:.0%}) to compute if prompts are shared"),
        ("cache", human_size(found.cache_bytes)),
        ("stage one", f"{_time(found.seconds)} on {config.gpus} x {config.gpu}, plus the start of "
         f"the engine; {_hours(hours * config.gpus)} {_unit(config)}-hours"),
        ("", _speed(config, found)),
    ]  # fmt: skip
    if found.cost is not None:
        rows.append(("cost", f"{found.cost:,.2f}, at {config.price:g} per {_unit(config)}-hour"))
    rows.append(("reference", _reference(config, found)))
    what = f"LoRA r={config.lora_r}" if config.lora_r else "all weights"
    rows += [
        ("stage two", f"{_memory(found.without_reference)}, per device"),
        ("usual trainer", f"{_memory(found.with_reference)}, with the reference"),
        ("", f"{what}, batches of {config.batch_size} of the longest pairs "
         f"({counts.longest_pair:,} tokens)"),
    ]  # fmt: skip
    return rows


def _rows(counts: "TokenCounts") -> str:
    text = f"{counts.rows:,} of {counts.read:,} can be used"
    if counts.sampled == counts.read:
        return text
    return (
        f"about {text}; {counts.sampled:,} were tokenized (tokens within {1.96 * counts.error:.1%})"
    )


def _unit(config: PlanConfig) -> str:
    return "core" if config.gpu == "cpu" else "GPU"


def _speed(config: PlanConfig, found: "Estimate") -> str:
    speed = f"{found.tokens_per_second:,.0f} sequence tokens/s"
    if config.tokens_per_second is not None:
        return f"{speed}, as measured: --tokens-per-second {config.tokens_per_second:g} on each"
    device = DEVICES[config.gpu]
    share = config.efficiency or device.efficiency
    if config.efficiency is not None:
        basis = "as given"
    else:
        basis = "measured" if device.measured else "a guess: give --tokens-per-second once measured"
    return (
        f"{speed}: {found.flops:.3g} operations, {device.flops / 1e12:g} TFLOP/s of each at "
        f"{share:.0%} ({basis})"
    )


def _reference(config: PlanConfig, found: "Estimate") -> str:
    text, memory = human_size(found.reference_bytes), DEVICES[config.gpu].memory
    needed = math.ceil(found.reference_bytes / (_ROOM * memory)) if memory else 1
    if needed > 1:
        text += f"; give --tensor-parallel-size {1 << (needed - 1).bit_length()}"
    return text


def _memory(found: "Memory") -> str:
    parts = {"weights": found.weights, "optimizer": found.trained,
             "activations": found.activations, "logits": found.logits}  # fmt: skip
    named = ", ".join(f"{name} {human_size(part)}" for name, part in parts.items())
    return f"{human_size(found.total)} ({named})"


def _hours(hours: float) -> str:
    if hours < 0.01:
        return "under 0.01"
    return f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
