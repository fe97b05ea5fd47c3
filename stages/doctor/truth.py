"""Log-probs and a DPO curve by their definitions: one sequence at a time, whole logits, `eager`.

Nothing here is shared with the stages except the weights of a new adapter, so a fault of theirs
cannot be in both.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

Ids = NDArray[np.int32]


class PairOfIds(NamedTuple):
    """Token ids of one preference."""

    prompt: Ids
    chosen: Ids
    rejected: Ids


class Step(NamedTuple):
    """One step of training, before its update."""

    loss: float
    margin: float
    grad_norm: float


def plain_model(folder: Path, dtype: str, device: str) -> nn.Module:
    """The model of a checkpoint, without any fused attention."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return model.to(device).eval()


def logps(model: nn.Module, prompt: Ids, response: Ids) -> Tensor:
    """log pi(y_t | x, y_<t) in nats, float64 [tokens of the response], differentiable."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([prompt, response])).long().to(device)
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return rows.gather(1, ids[len(prompt) :, None]).squeeze(1)


@torch.no_grad()
def all_logps(model: nn.Module, pairs: Sequence[PairOfIds]) -> list[NDArray[np.float32]]:
    """Log-probs of every response, in nats: chosen and rejected of each pair in turn."""
    return [
        logps(model, pair.prompt, response).float().cpu().numpy()
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]


def dpo_curve(
    model: nn.Module, pairs: Sequence[PairOfIds], *, steps: int, beta: float, rate: float
) -> list[Step]:
    """Train with DPO on all `pairs` in every step (Rafailov et al. 2023, equation 7).

    The optimizer is AdamW without weight decay, and gradients are clipped to a norm of 1. The
    reference is `model` as it comes; its trainable weights change.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    references = torch.tensor(
        [values.astype(np.float64).sum() for values in all_logps(model, pairs)]
    )
    ratios = references.view(-1, 2)
    found = []
    for _ in range(steps):
        losses, margins = zip(*_backward(model, pairs, ratios, beta), strict=True)
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(Step(float(np.mean(losses)), float(np.mean(margins)), float(norm)))
    return found


def _backward(
    model: nn.Module, pairs: Sequence[PairOfIds], references: Tensor, beta: float
) -> Iterator[tuple[float, float]]:
    """Add up the gradient of the mean loss, pair by pair; yield each loss and margin."""
    for pair, (chosen, rejected) in zip(pairs, references.tolist(), strict=True):
        margin = beta * (
            (logps(model, pair.prompt, pair.chosen).sum() - chosen)
            - (logps(model, pair.prompt, pair.rejected).sum() - rejected)
        )
        loss: Any = -F.logsigmoid(margin)
        (loss / len(pairs)).backward()
        yield loss.item(), margin.item()


def furthest(found: Sequence[Step], truth: Sequence[Step]) -> dict[str, float]:
    """The largest difference of each metric over the steps, as a share of its largest true value.

    It is infinite if steps are missing or a value is not finite.
    """
    if len(found) != len(truth) or not np.isfinite(found).all():
        return dict.fromkeys(Step._fields, float("inf"))
    apart = np.abs(np.array(found) - np.array(truth)).max(axis=0)
    return dict(zip(Step._fields, (apart / np.abs(truth).max(axis=0)).tolist(), strict=True))
