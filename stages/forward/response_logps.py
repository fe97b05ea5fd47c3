"""One forward pass -> log-probs of the response tokens.

The head runs only on rows that predict a response token. With SmolLM2's vocabulary (49k) the head
takes a quarter of the forward pass, and seven tenths of HH-RLHF's rows are prompt rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reflogp.stages.forward.anatomy import Anatomy, NotApartError, own_forward
from reflogp.stages.forward.chunked_head import head_logps, log_squares, logps_and_slopes

# At 1,000 nats the spacing of float32 is 6e-5, and a margin is the difference of four such sums. In
# float64 a sum is as exact as its tokens. Apple's MPS has no float64.
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64

Inputs = Mapping[str, Any]
"""A model's arguments: tensors, or for attention_mask also a dict of one for each type of layer."""


def response_logps(model: nn.Module, inputs: Inputs, rows: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of a batch's response tokens, differentiable.

    Args:
        model: a transformers causal language model, wrapped (PEFT, DDP) or not.
        inputs: its arguments: input_ids int64 [sequences, length], attention_mask, position_ids.
        rows: int64 [n], flat positions in input_ids whose hidden state predicts a response token.
        targets: int64 [n], those tokens.

    Returns:
        float32 [n], log pi(y_t | x, y_<t) in nats.
    """
    return response_logps_and_squares(model, inputs, rows, targets, squares=False)[0]


def response_logps_and_squares(
    model: nn.Module,
    inputs: Inputs,
    rows: Tensor,
    targets: Tensor,
    *,
    squares: bool = True,
) -> tuple[Tensor, Tensor]:
    """`response_logps`, and log sum_v pi(v | x, y_<t)^2 of each row: float32 [n], no gradient.

    WPO divides a token's probability by the second. It costs two more log-softmaxes of each row,
    whose logits are computed once. With `squares` False it costs nothing and is [0].
    """
    try:
        anatomy = Anatomy(model)
        hidden = anatomy.hidden(model, rows, **inputs)
    except NotApartError:
        return _by_the_whole_model(model, inputs, rows, targets, squares)
    return head_logps(anatomy.head, hidden, targets, anatomy.parameters, squares=squares)


def predicting(input_ids: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `rows` and `targets` of `response_logps` for sequences with marked response tokens.

    Args:
        input_ids: int64 [sequences, length].
        response_mask: bool [sequences, length], True on the tokens to score; never at position 0.

    Returns:
        rows and targets, int64 [n] each, in the order of the sequences; and int64 [n], the
        sequence that each belongs to.
    """
    # The logits at position t - 1 predict the token at t.
    marked = response_mask[:, 1:]
    owners, positions = marked.nonzero(as_tuple=True)
    return owners * input_ids.shape[1] + positions, input_ids[:, 1:][marked], owners


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target], computed in float32, without a gradient.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].

    Returns:
        float32 [n], in nats.
    """
    return logps_and_slopes(logits, targets, slopes=False)[0]


def sum_by_row(logps: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Sum per-token log-probs [n] over each sequence: SUM_DTYPE [batch], in nats."""
    zeros = logps.new_zeros(batch, dtype=SUM_DTYPE)
    return zeros.index_add(0, rows, logps.to(SUM_DTYPE))


def _by_the_whole_model(
    model: nn.Module, inputs: Inputs, rows: Tensor, targets: Tensor, squares: bool
) -> tuple[Tensor, Tensor]:
    """The same for a model that cannot be split: computes the logits of all positions at once."""
    logits: Any = own_forward(model)(**inputs, use_cache=False).logits
    picked = logits.flatten(0, 1).index_select(0, rows).float()
    logps = torch.log_softmax(picked, dim=-1).gather(1, targets[:, None]).squeeze(1)
    return logps, log_squares(picked) if squares else logps.new_zeros(0)
