"""Which layout a policy's batches have: the shared one wherever it gives the same numbers.

Whether it does is not a matter of names: the policy is tried on two short pairs. It must score them
as it does in separate sequences, and what stands in the chosen response must not reach the rejected
one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_schemas.errors import InputError
from stages.response_logps import response_logps
from stages.train.batches import Batch, Collate, separate, shared, unpaired
from stages.train.cached_pairs import Pair

# In nats a token. Reduced precision rounds otherwise in another layout; a wrong mask or position
# is off by far more.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_REDUCED = 0.25
_LENGTHS = (12, 40, 30)  # of prompt, chosen and rejected


def choose_layout(policy: nn.Module, wanted: str, *, paired: bool = True) -> tuple[Collate, str]:
    """The way to make batches for `policy`, and in words what it is and why.

    Raises:
        InputError: the shared layout was asked for, and the policy cannot do it, or the rows are
            no pairs.
    """
    if not paired:
        if wanted == "shared":
            raise InputError("--layout shared: unpaired rows have one response each. Leave it out.")
        return unpaired, "a sequence for each row"
    if wanted == "separate":
        return separate, "a sequence for each response (asked for)"
    obstacle = _obstacle(policy)
    if obstacle is None:
        return shared, "one sequence a pair, its prompt computed once"
    if wanted == "shared":
        raise InputError(f"--layout shared: {obstacle}. Give --layout separate, or leave it out.")
    return separate, f"a sequence for each response ({obstacle})"


def _obstacle(policy: nn.Module) -> str | None:
    """Why the shared layout does not do for `policy`; None if it does."""
    config: Any = getattr(policy, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    if attention != "sdpa":
        return f"its attention is {attention}, which takes no mask of ours"
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {"full_attention"}:
        return f"it has layers of {', '.join(sorted(others))}"
    try:
        with _still(policy):
            return _difference(policy, int(config.get_text_config().vocab_size))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"it does not take the mask: {type(error).__name__}"


def _difference(policy: nn.Module, vocabulary: int) -> str | None:
    """What goes wrong on two pairs that differ in their chosen response only."""
    one, other = _pair(vocabulary, 0), _pair(vocabulary, 1)
    alone, together = (_logps(policy, layout([one, other])) for layout in (separate, shared))
    moved = _logps(policy, shared([one, one]))
    dtype = next(policy.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_REDUCED)
    if not bool((alone - together).abs().mean() < tolerance):
        return "it scores a shared sequence differently"
    rejected = slice(-len(one.rejected_ids), None)
    if not bool((together[rejected] - moved[rejected]).abs().max() < tolerance):
        return "its rejected response sees the chosen one"
    return None


def _pair(vocabulary: int, variant: int) -> Pair:
    """A pair of fixed tokens; no random number is drawn, so training's are what they were."""
    prompt, chosen, rejected = (
        ((np.arange(length) * factor + offset) % vocabulary).astype(np.int32)
        for length, factor, offset in zip(_LENGTHS, (7, 11, 13), (5, 17 + variant, 3), strict=True)
    )
    return Pair(prompt, chosen, rejected, 0.0, 0.0)


def _logps(policy: nn.Module, batch: Batch) -> Tensor:
    device = next(policy.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
    with torch.no_grad():
        return response_logps(
            policy, inputs, batch["rows"].to(device), batch["targets"].to(device)
        ).cpu()


@contextmanager
def _still(policy: nn.Module) -> Iterator[None]:
    """Within, `policy` is in evaluation mode: no dropout."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
