"""One forward pass -> log-probs of the response tokens: the arithmetic that both stages share.

The head runs on the rows that predict a response token and on no others. At the vocabulary of
SmolLM2 (49k) the head is a quarter of the forward's time, and prompt rows are seven tenths
of HH-RLHF's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reflogp.stages.forward.anatomy import Anatomy, NotApartError, own_forward
from reflogp.stages.forward.chunked_head import head_logps, log_squares, logps_and_slopes

# A response of 1,000 nats has a float32 spacing of 6e-5, and the margin is a difference of four
# such sums; in float64 it is as good as the tokens are. Apple's MPS has no float64.
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


def response_logps(
    model: nn.Module, inputs: Mapping[str, Tensor], rows: Tensor, targets: Tensor
) -> Tensor:
    """Log-probs of the response tokens of a batch, differentiable.

    Args:
        model: a transformers causal language model, wrapped (PEFT, DDP) or not.
        inputs: its arguments: input_ids int64 [sequences, length], attention_mask, position_ids.
        rows: int64 [n], flat positions in input_ids whose hidden state predicts a token.
        targets: int64 [n], those tokens.

    Returns:
        float32 [n], log pi(y_t | x, y_<t) in nats.
    """
    return response_logps_and_squares(model, inputs, rows, targets, squares=False)[0]


def response_logps_and_squares(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    rows: Tensor,
    targets: Tensor,
    *,
    squares: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same, and log sum_v pi(v | x, y_<t)^2 beside each: float32 [n], without a gradient.

    The second is what WPO divides a token's probability by. It costs two more log-softmaxes of each
    row of logits, which are computed once; or, with `squares` False, nothing, and is [0].
    """
    try:
        anatomy = Anatomy(model)
        hidden = anatomy.hidden(model, rows, **inputs)
    except NotApartError:
        return _by_the_whole_model(model, inputs, rows, targets, squares)
    return head_logps(anatomy.head, hidden, targets, anatomy.parameters, squares=squares)


def predicting(input_ids: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What to ask of response_logps for sequences whose response tokens are marked.

    Args:
        input_ids: int64 [sequences, length].
        response_mask: bool [sequences, length], True on the tokens to score; never at position 0.

    Returns:
        rows and targets, int64 [n] each, sequence after sequence, in order; and int64 [n], the
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
    model: nn.Module, inputs: Mapping[str, Tensor], rows: Tensor, targets: Tensor, squares: bool
) -> tuple[Tensor, Tensor]:
    """The same of a model whose head is not apart: with all logits at one time."""
    logits: Any = own_forward(model)(**inputs, use_cache=False).logits
    picked = logits.flatten(0, 1).index_select(0, rows).float()
    logps = torch.log_softmax(picked, dim=-1).gather(1, targets[:, None]).squeeze(1)
    return logps, log_squares(picked) if squares else logps.new_zeros(0)
