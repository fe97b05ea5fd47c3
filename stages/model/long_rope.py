"""LongRoPE (Ding et al. 2024, 2402.13753): rotary factors that depend on a sequence's length.

A sequence longer than the model's first training has long factors, for all of its tokens.
transformers chooses by the longest sequence of a batch, so a short one would be scored differently
in other company. `by_sequence` makes each sequence choose for itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def short_length(config: Any) -> int | None:
    """Most tokens of a sequence with short factors; None for a model without LongRoPE."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # some models have settings for each type of layer
    found = [
        int(settings["original_max_position_embeddings"])
        for settings in (rope, *rope.values())
        if isinstance(settings, dict) and settings.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def by_sequence(model: nn.Module) -> None:
    """Make each sequence of a batch choose its factors by its own length.

    The length is the sequence's largest position. Without positions, they are made of a mask
    [sequences, length] that has 0 at padding on the right.
    """
    config: Any = model.config
    limit = short_length(config)
    if limit is None:
        return
    for body in model.modules():
        for rotary in body.children():
            if "longrope" in str(getattr(rotary, "rope_type", "")):
                own: Any = rotary.forward
                rotary.forward = partial(_apart, own, limit)
                body.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
    mask = named.get("attention_mask")
    if named.get("position_ids") is None and isinstance(mask, Tensor) and mask.dim() == 2:
        named = named | {"position_ids": mask.cumsum(1) - 1}
    return arguments, named


def _apart(
    own: Callable[..., tuple[Tensor, Tensor]],
    limit: int,
    states: Tensor,
    position_ids: Tensor,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [sequences, length, size], of short and long sequences separately."""
    long = position_ids.amax(1, keepdim=True) >= limit
    if bool(long.all()) or not bool(long.any()):
        return own(states, position_ids=position_ids, **more)
    each = own(states, position_ids=position_ids, **more)
    short = own(states, position_ids=position_ids.masked_fill(long, 0), **more)
    cosines, sines = (torch.where(long[..., None], *both) for both in zip(each, short, strict=True))
    return cosines, sines
