"""Chooses the layout of a policy's batches: shared if it gives the same numbers as separate.

The masks of the shared layout have the windows and chunks of the policy's configuration. A policy
that has others, or a recurrent state, has separate sequences. Any other policy is tried on two
short pairs and on the longest pairs of the cache, which reach beyond every window that matters. It
must score them as it does in separate sequences, and the chosen response must not influence the
rejected one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from reflogp.data_schemas.errors import InputError
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.long_rope import short_length
from reflogp.stages.train.data.attention import EVERYTHING, KINDS, Attention, attention_of
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
        return _for(policy, unpaired), "one sequence per row"
    if wanted == "separate":
        return _for(policy, separate), "one sequence per response (asked for)"
    found = _sharing(policy, longest)
    if not isinstance(found, str):
        return found, "one sequence per pair, its prompt computed once"
    if wanted == "shared":
        raise InputError(f"--layout shared: {found}. Give --layout separate, or leave it out.")
    return _for(policy, separate), f"one sequence per response ({found})"


def _for(policy: nn.Module, layout: Callable[..., Batch]) -> Collate:
    """The layout with a mask if `policy` needs to know the length of each sequence."""
    config: Any = policy.config
    return layout if short_length(config) is None else partial(layout, masked=True)


def _sharing(policy: nn.Module, longest: Sequence[Pair]) -> Collate | str:
    """The shared layout with the masks that `policy` takes, or why it cannot use it."""
    if obstacle := _of_its_kind(policy):
        return obstacle
    model: Any = policy
    config, embeddings = model.config, model.get_input_embeddings()
    eager = config._attn_implementation == "eager"
    attention = attention_of(config, embeddings.weight.dtype if eager else None)
    if obstacle := _of_lengths(policy, attention, longest):
        return obstacle
    layout = shared if attention == EVERYTHING else partial(shared, attention=attention)
    try:
        with _still(policy):
            obstacle = _difference(policy, layout, attention.furthest, longest)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        obstacle = f"it does not accept the layout's mask: {type(error).__name__}"
    return obstacle or layout


def _of_its_kind(policy: nn.Module) -> str | None:
    """Why a policy of this architecture cannot use the shared layout; None if it may."""
    config: Any = getattr(policy, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    # the eager attention of other models has a mask of its own besides the one that it is given
    eager = attention == "eager" and getattr(policy, "_supports_attention_backend", False)
    if attention != "sdpa" and not eager:
        return f"its attention is {attention}, which does not accept the layout's mask"
    if others := set(getattr(config.get_text_config(), "layer_types", None) or ()) - set(KINDS):
        return f"it has {', '.join(sorted(others))} layers"
    if getattr(policy, "_is_stateful", False):
        return "it has recurrent layers"
    return None


def _of_lengths(policy: nn.Module, attention: Attention, longest: Sequence[Pair]) -> str | None:
    """What the masks do not express in sequences as long as these; None if they express all."""
    length = max((pair.distinct_tokens for pair in longest), default=None)
    has = "sequences may be longer" if length is None else f"a pair has {length:,}"
    windows = set(_windows(policy)) - {size for reach in attention.reaches for size in reach}
    if windows and (length is None or length > min(windows)):
        return f"it attends to at most {min(windows):,} tokens, and {has}"
    config: Any = policy.config
    text = config.get_text_config()
    # the prompt would need the factors of a short response and of a long one
    short = short_length(config)
    if short is not None and (length is None or length > short):
        return f"its rotary factors depend on the length beyond {short:,} tokens, and {has}"
    # Llama 4 scales queries by their index in the sequence instead of their position
    first = int(text.floor_scale) if getattr(text, "attn_temperature_tuning", None) else None
    if first is not None and (length is None or length >= first):
        return f"it scales attention by index from {first:,} tokens on, and {has}"
    return None


def _windows(policy: nn.Module) -> Iterator[int]:
    """The attention windows, in tokens, of the policy's configuration and layers.

    Some models have one window in their configuration, others one in each layer, and the names
    differ. Any attribute named after a window or a chunk counts, except numbers and patterns of
    layers.
    """
    config: Any = getattr(policy, "config", None)
    places = [vars(config.get_text_config()), *(vars(module) for module in policy.modules())]
    for place in places:
        for name, value in place.items():
            named = re.search("window|chunk", name) and not re.search("layer|pattern", name)
            if named and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _difference(
    policy: nn.Module, layout: Collate, furthest: int, longest: Sequence[Pair]
) -> str | None:
    """What goes wrong on two pairs that differ only in the chosen response, or on long pairs."""
    config: Any = policy.config
    vocabulary = int(config.get_text_config().vocab_size)
    dtype = next(policy.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_REDUCED)
    one = _pair(vocabulary)
    long = longest or [_pair(vocabulary, further=furthest)]
    for pairs in ([one, _moved(one, vocabulary)], *([pair] for pair in long)):
        batch = layout(pairs)
        alone, together = _logps(policy, separate(pairs)), _logps(policy, batch)
        apart = (alone - together).abs()
        if not bool(apart.mean() < tolerance and apart.max() < _AT_ONE_TOKEN * tolerance):
            return "it scores a shared sequence differently"
        moved = _logps(policy, layout([_moved(pair, vocabulary) for pair in pairs]))
        rejected = batch["owners"] >= len(pairs)
        if not bool((together - moved)[rejected].abs().max() < tolerance):
            return "its rejected response sees the chosen one"
    return None


def _pair(vocabulary: int, further: int = 0) -> Pair:
    """A pair of fixed tokens. Drawing random ones would change the random numbers of training."""
    lengths = zip(_LENGTHS, (further, 0, 0), (7, 11, 13), (5, 17, 3), strict=True)
    prompt, chosen, rejected = (
        ((np.arange(length + more) * factor + offset) % vocabulary).astype(np.int32)
        for length, more, factor, offset in lengths
    )
    return Pair(prompt, chosen, rejected, 0.0, 0.0)


def _moved(pair: Pair, vocabulary: int) -> Pair:
    """The pair with another chosen response of the same length."""
    return pair._replace(chosen_ids=(pair.chosen_ids + 1) % vocabulary)


def _logps(policy: nn.Module, batch: Batch) -> Tensor:
    device = next(policy.parameters()).device
    with torch.no_grad():
        return response_logps(
            policy,
            send_to_device(batch["inputs"], device),
            batch["rows"].to(device),
            batch["targets"].to(device),
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
