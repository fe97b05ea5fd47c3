"""One forward pass -> log-probs of the response tokens: the arithmetic that both stages share.

The head runs on the rows that predict a response token and on no others. At the vocabulary of
SmolLM2 (49k) the head is a quarter of the forward's time, and prompt rows are seven tenths
of HH-RLHF's. The rows are picked by a hook on the model's own head, so that whatever the model
does around it (scaling, soft-capping) is done as ever, for any causal language model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Rows of logits that are in float32 at one time. On a CPU 16 x 49k x 4 bytes stay in its cache: 21
# microseconds a row on two cores, against 37 for chunks of 64. On sharp logits torch.logsumexp, and
# exp and sum by hand, take 5 times as long as log_softmax: what they store is full of denormals.
_CHUNK_ROWS_CPU = 16
_CHUNK_ROWS_GPU = 1024

# Rows that go through the head at one time in inference. On a CPU each chunk reads the weights
# once, which 256 rows hide (with 64 the head takes 12% longer, measured in vLLM at 576 x 49k); on a
# GPU 1,024 rows fill it, and are 0.6 GB of float32 logits at 150k words.
_HEAD_ROWS_CPU = 256
_HEAD_ROWS_GPU = 1024

# A response of 1,000 nats has a float32 spacing of 6e-5, and the margin is a difference of four
# such sums; in float64 it is as good as the tokens are. Apple's MPS has no float64.
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


def response_logps(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    *,
    head_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens of right-padded sequences.

    Args:
        model: a transformers causal language model, wrapped (PEFT, DDP) or not.
        input_ids: int64 [batch, length].
        attention_mask: int64 [batch, length], 1 on real tokens.
        response_mask: bool [batch, length], True on the tokens to score; never at position 0.
        head_rows: of how many tokens there are logits at one time, in inference; None: of all. So
            are there where the model is wrapped.

    Returns:
        logps: float32 [n], log pi(y_t | x, y_<t) in nats of all n scored tokens, sequence after
            sequence, in order.
        rows: int64 [n], the sequence that each belongs to.
    """
    # The logits at position t - 1 predict the token at t.
    predicting = response_mask[:, 1:]
    rows, positions = predicting.nonzero(as_tuple=True)
    flat = rows * input_ids.shape[1] + positions
    targets = input_ids[:, 1:][predicting]
    body = _body_of(model) if head_rows else None
    step = head_rows if head_rows and body is not None else max(len(flat), 1)
    parts = []
    with _computed_once(body):
        for start in range(0, max(len(flat), 1), step):
            chunk = slice(start, start + step)
            with _head_on(model, flat[chunk]):
                output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            parts.append(token_logps(output.logits.squeeze(0), targets[chunk]))
            del output  # or two chunks of logits would stand in memory
    return torch.cat(parts), rows


def rows_at_once(device: str) -> int:
    """Rows that go through the head at one time in inference on this kind of device."""
    return _HEAD_ROWS_CPU if device == "cpu" else _HEAD_ROWS_GPU


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target], computed in float32.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].

    Returns:
        float32 [n], in nats.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None]).squeeze(1)
    step = _CHUNK_ROWS_CPU if logits.device.type == "cpu" else _CHUNK_ROWS_GPU
    parts = [
        _chunk_logps(logits[start : start + step], targets[start : start + step])
        for start in range(0, len(targets), step)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def sum_by_row(logps: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Sum per-token log-probs [n] over each sequence: SUM_DTYPE [batch], in nats."""
    zeros = logps.new_zeros(batch, dtype=SUM_DTYPE)
    return zeros.index_add(0, rows, logps.to(SUM_DTYPE))


def _chunk_logps(logits: Tensor, targets: Tensor) -> Tensor:
    scores = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return scores.gather(1, targets[:, None]).squeeze(1)


@contextmanager
def _head_on(model: nn.Module, flat: Tensor) -> Iterator[None]:
    """Within, the head sees only some hidden states, so that it gives logits [1, n, vocabulary].

    Args:
        model: the model, wrapped or not.
        flat: int64 [n], row x length + position of each hidden state to keep.
    """

    def pick(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        (hidden,) = arguments
        return (hidden.flatten(0, 1).index_select(0, flat).unsqueeze(0),)

    handle = _head_of(model).register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _head_of(model: nn.Module) -> nn.Module:
    inner: Any = getattr(model, "module", model)
    head: nn.Module = inner.get_output_embeddings()
    return head


def _body_of(model: nn.Module) -> nn.Module | None:
    """All of a model that comes before its head; None where that is not one module of its own."""
    body: Any = getattr(model, "base_model", model)
    return None if any(module is _head_of(model) for module in body.modules()) else body


@contextmanager
def _computed_once(body: nn.Module | None) -> Iterator[None]:
    """Within, `body` runs at its first call, and gives what it gave then at every later one.

    So the model can be asked for one chunk of logits after another: it does what it does around the
    head (scaling, soft-capping) each time, and all before it once.
    """
    if body is None:
        yield
        return
    forward = body.forward
    given: list[Any] = []

    def once(*arguments: Any, **named: Any) -> Any:
        if not given:
            given.append(forward(*arguments, **named))
        return given[0]

    own = body.__dict__.get("forward")  # of accelerate's hooks, where there are any
    body.forward = once
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
