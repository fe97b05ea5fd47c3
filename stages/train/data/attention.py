"""Which tokens of a shared sequence attend to which, as the masks that a model's layers take.

Windows and chunks are measured in positions. A rejected response has the positions after its
prompt, so the distance of two tokens is smaller than the number of tokens between them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROMPT, CHOSEN, REJECTED, PADDING = range(4)
KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""The types of layers, by transformers' names, whose masks are made here."""


class Reach(NamedTuple):
    """How far back a token looks; with neither, to the beginning of its sequence.

    Attributes:
        window: it sees the last so many tokens, itself included.
        chunk: it sees its own chunk, of so many tokens.
    """

    window: int | None = None
    chunk: int | None = None

    def limit(self, seen: Tensor, positions: Tensor) -> Tensor:
        """What is left of bool `seen` [sequences, queries, keys]."""
        queries, keys = positions[:, :, None], positions[:, None, :]
        if self.window is not None:
            return seen & (queries - keys < self.window)
        if self.chunk is not None:
            return seen & (queries // self.chunk == keys // self.chunk)
        return seen


class Attention(NamedTuple):
    """The masks that a model takes.

    Attributes:
        reach: of all layers, or of each type of layer if the model takes a mask for each.
        added: the dtype of a mask that is added to the scores of attention, as `eager` does. None:
            the mask is bool.
    """

    reach: Reach | Mapping[str, Reach] = Reach()
    added: torch.dtype | None = None

    @property
    def reaches(self) -> list[Reach]:
        """Every different reach."""
        return [self.reach] if isinstance(self.reach, Reach) else list(self.reach.values())

    @property
    def furthest(self) -> int:
        """The largest window or chunk; 0 if there is none."""
        return max(size or 0 for reach in self.reaches for size in reach)

    def masks(self, parts: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """One mask [sequences, 1, length, length], or one for each type of layer.

        Args:
            parts: int64 [sequences, length], PROMPT, CHOSEN, REJECTED or PADDING.
            positions: int64 [sequences, length].
        """
        length = parts.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        queries, keys = parts[:, :, None], parts[:, None, :]
        seen = causal & ((queries == keys) | (keys == PROMPT))

        def mask(reach: Reach) -> Tensor:
            limited = reach.limit(seen, positions)[:, None]
            if self.added is None:
                return limited
            lowest = torch.finfo(self.added).min  # -inf would give NaN in some models
            return torch.zeros(limited.shape, dtype=self.added).masked_fill(~limited, lowest)

        if isinstance(self.reach, Reach):
            return mask(self.reach)
        return {kind: mask(reach) for kind, reach in self.reach.items()}


EVERYTHING = Attention()
"""Of a model whose layers all see the whole sequence, with bool masks."""


def attention_of(config: Any, added: torch.dtype | None) -> Attention:
    """The masks of a model whose types of layers, if its configuration names any, are in `KINDS`.

    Without types, transformers' models take one mask, with the window or chunk that they have.
    """
    text = config.get_text_config()
    window = Reach(window=_size(text, "sliding_window"))
    chunk = Reach(chunk=_size(text, "attention_chunk_size"))
    kinds = sorted(set(getattr(text, "layer_types", None) or ()))
    every = dict(zip(KINDS, (Reach(), window, chunk), strict=True))
    if len(kinds) > 1:
        return Attention({kind: every[kind] for kind in kinds}, added)
    if kinds:
        return Attention(every[kinds[0]], added)
    return Attention(chunk if window.window is None else window, added)


def _size(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None
