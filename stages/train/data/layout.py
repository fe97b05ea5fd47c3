"""Which layout a policy's batches have: the shared one wherever it gives the same numbers.

A policy is tried, on two short pairs and on the longest ones of the cache. It must score them as it
does in separate sequences, and what stands in the chosen response must not reach the rejected one.
Where it looks back over a window of tokens only, whose mask ours would replace, the shared layout
is for caches whose sequences all fit in the window.
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

# In nats a token. Reduced precision rounds otherwise in another layout; a wrong mask or position
# is off by far more.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_REDUCED = 0.25
_AT_ONE_TOKEN = (
    30  # times that, so that a few tokens at the end of a long pair are not averaged out
)
_LENGTHS = (12, 40, 30)  # of prompt, chosen and rejected


def choose_layout(
    policy: nn.Module, wanted: str, longest: Sequence[Any] = (), *, paired: bool = True
) -> tuple[Collate, str]:
    """The way to make batches for `policy`, and in words what it is and why.

    Args:
        policy: as it is trained.
        wanted: --layout.
        longest: the pairs of the cache with the longest sequences; of none, sequences may have any
            length.
        paired: whether the rows are pairs.

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
    obstacle = _obstacle(policy, longest)
    if obstacle is None:
        return shared, "one sequence a pair, its prompt computed once"
    if wanted == "shared":
        raise InputError(f"--layout shared: {obstacle}. Give --layout separate, or leave it out.")
    return separate, f"a sequence for each response ({obstacle})"


def _obstacle(policy: nn.Module, longest: Sequence[Pair]) -> str | None:
    """Why the shared layout does not do for `policy`; None if it does."""
    config: Any = getattr(policy, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    if attention != "sdpa":
        return f"its attention is {attention}, which takes no mask of ours"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if others := kinds - {"full_attention"}:
        return f"it has layers of {', '.join(sorted(others))}"
    length = max(map(_longest_sequence, longest), default=None)
    window = min(_windows(policy), default=None)
    if window is not None and (length is None or length > window):
        has = "sequences may be longer" if length is None else f"a sequence has {length:,}"
        return f"it looks back over {window:,} tokens at most, and {has}"
    try:
        with _still(policy):
            return _difference(policy, int(config.get_text_config().vocab_size), longest)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"it does not take the mask: {type(error).__name__}"


def _longest_sequence(pair: Pair) -> int:
    return len(pair.prompt_ids) + max(len(ids) for ids in pair.responses)


def _windows(policy: nn.Module) -> Iterator[int]:
    """How many tokens the policy's layers look back, in each place that says so.

    Some models have one number for all layers in their configuration, others one in each layer, and
    there is no common name: whatever is called a window or a chunk counts, but no number of layers.
    """
    config: Any = getattr(policy, "config", None)
    places = [vars(config.get_text_config()), *(vars(module) for module in policy.modules())]
    for place in places:
        for name, value in place.items():
            named = ("window" in name or "chunk" in name) and "layer" not in name
            if named and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _difference(policy: nn.Module, vocabulary: int, longest: Sequence[Pair]) -> str | None:
    """What goes wrong on two pairs that differ in their chosen response only, or on long pairs."""
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
