"""Token counts, model shape and device -> time, cost, disk and memory.

This file is the complete throughput and memory model; docs/plan.md explains it.
"""

from dataclasses import dataclass

from reflogp.stages.estimate.config import DEVICES, PlanConfig
from reflogp.stages.estimate.counts import TokenCounts
from reflogp.stages.estimate.shape import Shape

# Bytes of a cache, measured on real pairs: 1.65 per response token id and 3.65 per log-prob.
# Prompts are sorted within a shard and compress better. Each row adds an id and two sums.
_PROMPT_BYTES, _RESPONSE_BYTES, _ROW_BYTES = 1.2, 5.3, 32.0
# Bytes per token and layer that are kept for the backward pass in bfloat16: norms and their float32
# copies, q, k, v and the attention's output; gate, up and their product.
_HIDDEN_BYTES, _INTERMEDIATE_BYTES = 38, 6
# Bytes per logit in the usual trainer: bfloat16, float32 log-softmax, and the gradient of each.
_LOGIT_BYTES = 12
_CHUNK_ROWS = {"cpu": 512}
_CHUNK_ROWS_ELSEWHERE = 1024
_PROCESS_BYTES = 0.6e9  # libraries, or a CUDA context


@dataclass(frozen=True)
class Memory:
    """Bytes on each device during training."""

    weights: float
    trained: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of all parts, plus what a process takes at its start."""
        return self.weights + self.trained + self.activations + self.logits + _PROCESS_BYTES


@dataclass(frozen=True)
class Estimate:
    """The estimate for both stages.

    Attributes:
        cache_bytes: size of the sealed cache.
        flops: least number of operations of stage one.
        tokens_per_second: sequence tokens per second of stage one, over all devices.
        seconds: duration of stage one, without the start of the engines.
        cost: cost of stage one, in the currency of --price; None without it.
        reference_bytes: size of the reference's weights in stage one.
        without_reference: memory of stage two, which trains against the cache.
        with_reference: memory of the usual trainer, which has the reference in memory.
    """

    cache_bytes: float
    flops: float
    tokens_per_second: float
    seconds: float
    cost: float | None
    reference_bytes: float
    without_reference: Memory
    with_reference: Memory


def estimate(config: PlanConfig, counts: TokenCounts, shape: Shape, weight_bytes: int) -> Estimate:
    """Estimate both stages.

    Args:
        config: devices, price and batches.
        counts: token counts of the data.
        shape: shape of the model.
        weight_bytes: bytes per weight of the checkpoint.
    """
    device = DEVICES[config.gpu]
    flops = (
        shape.body_flops * counts.distinct
        + shape.attended_flops * counts.attended
        + shape.head_flops * counts.head_rows
    )
    if config.tokens_per_second is not None:
        speed = config.tokens_per_second * config.gpus
    else:
        reached = device.flops * (config.efficiency or device.efficiency) * config.gpus
        speed = counts.sequence * reached / flops
    seconds = counts.sequence / speed
    cache_bytes = (
        _PROMPT_BYTES * counts.prompt + _RESPONSE_BYTES * counts.response + _ROW_BYTES * counts.rows
    )
    return Estimate(
        cache_bytes=cache_bytes,
        flops=flops,
        tokens_per_second=speed,
        seconds=seconds,
        cost=None if config.price is None else config.price * config.gpus * seconds / 3600,
        reference_bytes=float(shape.parameters * weight_bytes),
        without_reference=_without(config, counts, shape, weight_bytes),
        with_reference=_with(config, counts, shape, weight_bytes),
    )


def _without(config: PlanConfig, counts: TokenCounts, shape: Shape, weight_bytes: int) -> Memory:
    """Estimate stage two: each pair is one sequence, and the head runs on chunks of rows."""
    rows = _CHUNK_ROWS.get(config.gpu, _CHUNK_ROWS_ELSEWHERE)
    weights, trained = _weights(shape, weight_bytes)
    return Memory(
        weights=weights,
        trained=trained,
        activations=_activations(config, shape, config.batch_size * counts.longest_pair),
        logits=float(rows * shape.vocabulary * _LOGIT_BYTES),
    )


def _with(config: PlanConfig, counts: TokenCounts, shape: Shape, weight_bytes: int) -> Memory:
    """Estimate the usual trainer.

    It pads two sequences per pair, computes full logits, and keeps a second model unless the policy
    is a LoRA adapter.
    """
    tokens = 2 * config.batch_size * counts.longest_sequence
    weights, trained = _weights(shape, weight_bytes)
    second = 0 if shape.adapter else shape.parameters * weight_bytes
    return Memory(
        weights=weights + second,
        trained=trained,
        activations=_activations(config, shape, tokens),
        logits=float(tokens * shape.vocabulary * _LOGIT_BYTES),
    )


def _weights(shape: Shape, weight_bytes: int) -> tuple[float, float]:
    """Return the bytes of all weights, and of the float32 training state of the trained ones."""
    weights = float(shape.parameters * weight_bytes)
    if shape.adapter:
        return weights, float(16 * shape.adapter)
    # float32 gradients and two moments; and next to bfloat16 weights (or autocast), float32 ones
    return weights, float((12 if weight_bytes == 4 else 16) * shape.parameters)


def _activations(config: PlanConfig, shape: Shape, tokens: int) -> float:
    layer = _HIDDEN_BYTES * shape.hidden + _INTERMEDIATE_BYTES * shape.intermediate
    if config.gradient_checkpointing:
        return float(tokens * (layer + 2 * shape.hidden * shape.layers))
    return float(tokens * layer * shape.layers)
