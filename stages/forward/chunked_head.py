"""Hidden states -> log-probs of given tokens, some rows of logits at a time, with exact gradients.

A batch's logits over the whole vocabulary are its largest tensor by far, and no more than one
number of each row is wanted. Here the head runs on chunks of rows, and what the model does around
its head (scaling, soft-capping) it does itself: it is called with hidden states in the place of its
body's output, so any causal language model will do.

d logp_t / d h_t needs row t alone. So where the head is frozen (LoRA) the forward pass finds it on
the way, and the backward pass is one product a row; the head costs two matrix products, not three
as in autograd. Where the head is trained, the backward pass computes the logits again, but for the
last chunk, with which it begins: its graph and slopes are kept. So passes of one chunk compute none
twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# The most rows that go through the head at one time. On a CPU each chunk reads the weights once,
# which 256 rows hide (with 64 the head takes 12% longer, measured in vLLM at 576 x 49k), and where
# they are trained their gradient is made once a chunk, which is larger than the logits of 512 rows
# are. On a GPU 1,024 rows fill it, and are 0.6 GB of float32 logits at 150k words.
_HEAD_ROWS = {"cpu": 512}
_HEAD_ROWS_ELSEWHERE = 1024

# Of those, rows that are in float32 at one time. On a CPU 16 x 49k x 4 bytes stay in its cache: 21
# microseconds a row on two cores, against 37 for chunks of 64. On sharp logits torch.logsumexp, and
# exp and sum by hand, take 5 times as long as log_softmax: what they store is full of denormals.
_SOFTMAX_ROWS = {"cpu": 16}
_SOFTMAX_ROWS_ELSEWHERE = 1024

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden] -> logits [n, vocabulary]."""


def rows_at_once(device: str) -> int:
    """The most rows that go through the head at one time on this kind of device."""
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
        head: from hidden states to logits, row by row.
        hidden: [n, hidden].
        targets: int64 [n].
        parameters: of the head, those that are trained.
        squares: whether to find the log-squares, too; they cost nothing when not asked for.

    Returns:
        logps: float32 [n] (float64 for float64), in nats.
        log_squares: the same of `log_squares(head(hidden))`, without a gradient; or [0].
    """
    apply: Any = _ChunkedLogps.apply
    logps, found = apply(head, squares, targets, hidden, *parameters)
    return logps, found


class _ChunkedLogps(torch.autograd.Function):
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
            del logits  # else they would lie beside those of the next chunk
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
                del logits  # of the chunk, only what its graph needs lies beside its gradients
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
    """log softmax(logits)[target] of each row, and its derivative by the row's logits.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].
        slopes: whether to find the derivatives, too.

    Returns:
        logps: float32 [n] (float64 for float64), in nats, computed in that dtype.
        slopes: one-hot minus softmax, [n, vocabulary] in the dtype of `logits`; or [0].
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
            # exp in place: `scores` is not needed any more
            slope = scores.exp_().neg_()
            derivatives[part] = slope.scatter_add_(1, wanted, torch.ones_like(slope[:, :1]))
    return found, derivatives


def log_squares(logits: Tensor) -> Tensor:
    """log sum_v softmax(logits)_v^2 of each row, without a gradient: how sure a distribution is.

    0 where one word has all the probability, -log n where n words share it.

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
        # logsumexp(2 s) = 2 s_v - log_softmax(2 s)_v for any v; at the largest nothing cancels
        found[part] = 2 * scores.amax(-1) - torch.log_softmax(2 * scores, dim=-1).amax(-1)
    return found


def _with_slope(head: Head, rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a graph that reaches `rows` and the head's parameters; logps; slopes."""
    rows.requires_grad_()
    with torch.enable_grad():
        logits = head(rows)
    return logits, *logps_and_slopes(logits, wanted)


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """The sums, at least in float32, with one more part each; the first parts begin them."""
    if not sums:
        return [part.to(_wide(part)) for part in parts]
    return [total.add_(part) for total, part in zip(sums, parts, strict=True)]


def _chunks(rows: Tensor) -> list[slice]:
    """All rows in as few chunks as may be, of like size."""
    chunks = -(-len(rows) // rows_at_once(rows.device.type))
    step = -(-len(rows) // max(chunks, 1))
    return [slice(start, start + step) for start in range(0, len(rows), max(step, 1))]


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of log-probs and of sums: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _autocast(device: str) -> Callable[[], Any]:
    """The autocast that is on now, for the backward pass, which runs outside of it, and for graphs.

    Without its cache, so that a graph which is kept has casts of its own.
    """
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)
