"""Chooses the layout of a policy's batches: shared if it gives the same numbers as separate.

The policy is tried on two short pairs and on the longest pairs of the cache. It must score them as
it does in separate sequences, and the chosen response must not influence the rejected one. If the
policy has sliding-window attention, whose mask the shared layout would replace, the layout is
shared only if all sequences of the cache fit in the window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reflogp.data_schemas.errors import InputError
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.train.data.batches import Batch, Collate, separate, shared, unpaired
from reflogp.stages.train.data.cached_pairs import Pair

# In nats per token. Reduced precision rounds differently in another layout, but a wrong mask or
# position changes far more.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_REDUCED = 0.25
# times that for a single token, so an error in a few tokens of a long pair is not averaged away
_AT_ONE_TOKEN = 30
_LENGTHS = (12, 40, 30)  # of prompt, chosen and rejected


def choose_layout(
    policy: nn.Module, wanted: str, longest: Sequence[Any] = (), *, paired: bool = True
) -> tuple[Collate, str]:
    """The collate function for `policy`, and a description of the layout and the reason for it.

    Args:
        policy: in the state in which it is trained.
        wanted: --layout.
        longest: the pairs of the cache with the longest sequences; empty if the lengths are
            unknown.
        paired: whether the rows are pairs.

    Raises:
        InputError: the shared layout was asked for, but the policy does not support it or the rows
            are unpaired.
    """
    if not paired:
        if wanted == "shared":
            raise InputError("--layout shared: unpaired rows have one response each. Leave it out.")
        return unpaired, "one sequence per row"
    if wanted == "separate":
        return separate, "one sequence per response (asked for)"
    obstacle = _obstacle(policy, longest)
    if obstacle is None:
        return shared, "one sequence per pair, its prompt computed once"
    if wanted == "shared":
        raise InputError(f"--layout shared: {obstacle}. Give --layout separate, or leave it out.")
    return separate, f"one sequence per response ({obstacle})"


def _obstacle(policy: nn.Module, longest: Sequence[Pair]) -> str | None:
    """Why `policy` cannot use the shared layout; None if it can."""
    config: Any = getattr(policy, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    if attention != "sdpa":
        return f"its attention is {attention}, which does not accept the layout's mask"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if others := kinds - {"full_attention"}:
        return f"it has {', '.join(sorted(others))} layers"
    length = max(map(_longest_sequence, longest), default=None)
    window = min(_windows(policy), default=None)
    if window is not None and (length is None or length > window):
        has = "sequences may be longer" if length is None else f"a sequence has {length:,}"
        return f"it attends to at most {window:,} tokens, and {has}"
    try:
        with _still(policy):
            return _difference(policy, int(config.get_text_config().vocab_size), longest)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"it does not accept the layout's mask: {type(error).__name__}"


def _longest_sequence(pair: Pair) -> int:
    return len(pair.prompt_ids) + max(len(ids) for ids in pair.responses)


def _windows(policy: nn.Module) -> Iterator[int]:
    """The attention windows, in tokens, of the policy's configuration and layers.

    Some models have one window in their configuration, others one in each layer, and the names
    differ. Any attribute named after a window or a chunk counts, except numbers of layers.
    """
    config: Any = getattr(policy, "config", None)
    places = [vars(config.get_text_config()), *(vars(module) for module in policy.modules())]
    for place in places:
        for name, value in place.items():
            named = ("window" in name or "chunk" in name) and "layer" not in name
            if named and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _difference(policy: nn.Module, vocabulary: int, longest: Sequence[Pair]) -> str | None:
    """What goes wrong on two pairs that differ only in the chosen response, or on long pairs."""
    one, other = _pair(vocabulary, 0), _pair(vocabulary, 1)
    dtype = next(policy.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_REDUCED)
    for pairs in ([one, other], *([pair] for pair in longest)):
        alone, together = (_logps(policy, layout(pairs)) for layout in (separate, shared))
        apart = (alone - together).abs()
        if not bool(apart.mean() < tolerance and apart.max() < _AT_ONE_TOKEN * tolerance):
            return "it scores a shared sequence differently"
    together, moved = (_logps(policy, shared(pairs)) for pairs in ([one, other], [one, one]))
    rejected = slice(-len(one.rejected_ids), None)
    if not bool((together[rejected] - moved[rejected]).abs().max() < tolerance):
        return "its rejected response sees the chosen one"
    return None


def _pair(vocabulary: int, variant: int) -> Pair:
    """A pair of fixed tokens. Drawing random ones would change the random numbers of training."""
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
    """In the block, `policy` is in evaluation mode, without dropout."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
