"""Hidden states -> log-probs of given tokens, in chunks of rows, with exact gradients.

A batch's logits over the whole vocabulary are by far its largest tensor, and training needs one
number per row. The head therefore runs on chunks of rows. It runs inside the model's own forward,
which gets hidden states in place of its body's output, so scaling and soft-capping are the model's
own and any causal language model works.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# The most rows that go through the head at once. On a CPU, each chunk reads the weights once, which
# 256 rows hide (64 rows take 12% longer, measured in vLLM at 576 x 49k). If the weights are
# trained, each chunk also computes their gradient, which is larger than the logits of 512 rows. On
# a GPU, 1,024 rows fill the device, and their float32 logits over 150k tokens take 0.6 GB.
_HEAD_ROWS = {"cpu": 512}
_HEAD_ROWS_ELSEWHERE = 1024

# The most of those rows that are in float32 at once. On a CPU, 16 x 49k x 4 bytes stay in its
# cache: 21 microseconds a row on two cores, against 37 for chunks of 64. On sharp logits,
# torch.logsumexp, or exp and sum, take 5 times as long as log_softmax: they store many denormals.
_SOFTMAX_ROWS = {"cpu": 16}
_SOFTMAX_ROWS_ELSEWHERE = 1024

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden] -> logits [n, vocabulary]."""


def rows_at_once(device: str) -> int:
    """The most rows that go through the head at once on this type of device."""
    return _HEAD_ROWS.get(device, _HEAD_ROWS_ELSEWHERE)


def head_logps(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    parameters: list[Tensor],
    *,
    squares: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden))[target] of each row, differentiable.

    Args:
        head: maps hidden states to logits, row by row.
        hidden: [n, hidden].
        targets: int64 [n].
        parameters: the trained parameters of the head.
        squares: whether to compute the log-squares too.

    Returns:
        logps: float32 [n] (float64 for float64), in nats.
        log_squares: `log_squares(head(hidden))`, same shape and dtype, without a gradient; [0] if
            `squares` is False.
    """
    apply: Any = _ChunkedLogps.apply
    logps, found = apply(head, squares, targets, hidden, *parameters)
    return logps, found


class _ChunkedLogps(torch.autograd.Function):
    """`head_logps` in chunks of rows.

    d logp_t / d h_t needs row t only. With a frozen head (LoRA), the forward pass computes it, and
    the backward pass is one product per row: the head costs two matrix products instead of
    autograd's three. With a trained head, the backward pass recomputes every chunk except the last,
    whose graph and slopes are kept. A pass of one chunk recomputes nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, head: Head, squares: bool, targets: Tensor, hidden: Tensor, *parameters: Tensor
    ) -> Any:
        ctx.head, ctx.autocast, ctx.last = head, _autocast(hidden.device.type), None
        trains_head = any(ctx.needs_input_grad[4:])
        follows = ctx.needs_input_grad[3]
        nothing = hidden.new_zeros(0, dtype=_wide(hidden))
        logps, slopes, spreads = [nothing], [], [nothing]
        chunks = _chunks(hidden)
        for chunk in chunks:
            rows, wanted = hidden[chunk].detach(), targets[chunk]
            if follows and (not trains_head or chunk is chunks[-1]):
                with ctx.autocast():
                    logits, value, slope = _with_slope(head, rows, wanted)
                edge = get_gradient_edge(logits)
                if trains_head:
                    ctx.last = rows, edge, slope
                else:
                    slopes.append(torch.autograd.grad(edge, rows, slope)[0])
                del slope
            else:
                logits = head(rows)
                value, _ = logps_and_slopes(logits, wanted, slopes=False)
            logps.append(value)
            if squares:
                spreads.append(log_squares(logits))
            del logits  # free them before the next chunk's are allocated
        ctx.has_slopes = bool(slopes)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        else:
            ctx.save_for_backward(hidden, targets, *parameters)
        found = torch.cat(spreads)
        ctx.mark_non_differentiable(found)
        return torch.cat(logps), found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        upstream = gradients[0]
        if ctx.has_slopes:
            (slopes,) = ctx.saved_tensors
            by_row = slopes * upstream[:, None].to(slopes.dtype)
            return None, None, None, by_row, *[None] * (len(ctx.needs_input_grad) - 4)
        hidden, targets, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        trained = [p for p, needs in zip(parameters, needed, strict=True) if needs]
        by_hidden = torch.empty_like(hidden)
        sums: list[Tensor] = []
        last, ctx.last = ctx.last, None
        for chunk in reversed(_chunks(hidden)):
            if last is not None:
                (rows, edge, slope), last = last, None
            else:
                rows = hidden[chunk].detach()
                with ctx.autocast():
                    logits, _, slope = _with_slope(ctx.head, rows, targets[chunk])
                edge = get_gradient_edge(logits)
                del logits  # keep only what the graph needs while the gradients are computed
            slope *= upstream[chunk, None].to(slope.dtype)
            by_hidden[chunk], *of_parameters = torch.autograd.grad(
                edge, [rows, *trained], slope, materialize_grads=True
            )
            sums = _added(sums, of_parameters)
            del edge, slope, of_parameters
        found = iter(sums or map(torch.zeros_like, trained))
        by_parameter = [next(found) if needs else None for needs in needed]
        return None, None, None, by_hidden, *by_parameter


def logps_and_slopes(
    logits: Tensor, targets: Tensor, *, slopes: bool = True
) -> tuple[Tensor, Tensor]:
    """log softmax(logits)[target] of each row, and its derivative with respect to the row's logits.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].
        slopes: whether to compute the derivatives too.

    Returns:
        logps: float32 [n] (float64 for float64), in nats, computed in that dtype.
        slopes: one-hot minus softmax, [n, vocabulary] in the dtype of `logits`; [0] if `slopes` is
            False.
    """
    kind = _wide(logits)
    logits = logits.detach()
    step = _SOFTMAX_ROWS.get(logits.device.type, _SOFTMAX_ROWS_ELSEWHERE)
    found = logits.new_empty(len(logits), dtype=kind)
    derivatives = torch.empty_like(logits) if slopes else logits.new_empty(0)
    for start in range(0, len(logits), step):
        part, wanted = slice(start, start + step), targets[start : start + step, None]
        scores = torch.log_softmax(logits[part], dim=-1, dtype=kind)
        found[part] = scores.gather(1, wanted).squeeze(1)
        if slopes:
            # in place: `scores` is not used again
            slope = scores.exp_().neg_()
            derivatives[part] = slope.scatter_add_(1, wanted, torch.ones_like(slope[:, :1]))
    return found, derivatives


def log_squares(logits: Tensor) -> Tensor:
    """log sum_v softmax(logits)_v^2 of each row, without a gradient: how peaked a distribution is.

    It is 0 if one token has all the probability, and -log n if n tokens share it equally.

    Args:
        logits: [n, vocabulary], any float dtype.

    Returns:
        float32 [n] (float64 for float64), in nats.
    """
    kind = _wide(logits)
    logits = logits.detach()
    step = _SOFTMAX_ROWS.get(logits.device.type, _SOFTMAX_ROWS_ELSEWHERE)
    found = logits.new_empty(len(logits), dtype=kind)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        scores = torch.log_softmax(logits[part], dim=-1, dtype=kind)
        # logsumexp(2 s) = 2 s_v - log_softmax(2 s)_v for any v; the largest avoids cancellation
        found[part] = 2 * scores.amax(-1) - torch.log_softmax(2 * scores, dim=-1).amax(-1)
    return found


def _with_slope(head: Head, rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a graph that reaches `rows` and the head's parameters; logps; slopes."""
    rows.requires_grad_()
    with torch.enable_grad():
        logits = head(rows)
    return logits, *logps_and_slopes(logits, wanted)


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Add one part to each sum, at least in float32. The first parts start the sums."""
    if not sums:
        return [part.to(_wide(part)) for part in parts]
    return [total.add_(part) for total, part in zip(sums, parts, strict=True)]


def _chunks(rows: Tensor) -> list[slice]:
    """Split the rows into as few chunks as possible, of about equal size."""
    chunks = -(-len(rows) // rows_at_once(rows.device.type))
    step = -(-len(rows) // max(chunks, 1))
    return [slice(start, start + step) for start in range(0, len(rows), max(step, 1))]


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of log-probs and of sums: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _autocast(device: str) -> Callable[[], Any]:
    """The current autocast, to enter again in the backward pass, which runs outside it.

    Its cache is off, so a graph that is kept has its own casts.
    """
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)
