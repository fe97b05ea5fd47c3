"""A causal language model in its two parts: the body, which gives hidden states, and the head."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from stages.own_forward import own_forward


class Anatomy:
    """A causal language model in its two parts.

    Attributes:
        body: all before the head; gives hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take a transformers model apart, wrapped (PEFT, DDP) or not.

        Raises:
            ValueError: its head is not apart from its body.
        """
        inner: Any = getattr(model, "module", model)
        self._lm: Any = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self.body: nn.Module = self._lm.base_model
        head = self._lm.get_output_embeddings()
        if head is None or any(module is head for module in self.body.modules()):
            raise ValueError(f"{type(self._lm).__name__} has no head apart from its body")
        self._output_embeddings: nn.Module = head
        self._output: Any = None

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained outside of the body, and the head's weights if they are.

        With FSDP they are whole, and are what the head works with, only once `hidden` has run.
        """
        of_body = set(self.body.parameters())
        outside = [p for p in self._lm.parameters() if p not in of_body]
        candidates = dict.fromkeys([*outside, *self._output_embeddings.parameters()])
        return [p for p in candidates if p.requires_grad]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] of hidden states [n, hidden], once `hidden` has run."""
        nothing = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        given = _with_hidden(self._output, hidden.unsqueeze(0))
        with (
            _replaced_forward(self.body, lambda *_, **__: given),
            _without_hooks(self._output_embeddings),
        ):
            logits: Tensor = own_forward(self._lm)(input_ids=nothing, use_cache=False).logits
        return logits.squeeze(0)

    def hidden(self, model: nn.Module, rows: Tensor, **inputs: Any) -> Tensor:
        """Hidden states [n, hidden] at flat positions `rows` of a forward pass of `model`.

        `model` runs as a whole, so that what is wrapped around its parts is there; its head gets
        one row.
        """
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> Any:
            states = output.last_hidden_state
            found.append(states.flatten(0, 1).index_select(0, rows))
            self._output = _with_hidden(output, states[:1, :1])
            return self._output

        handle = self.body.register_forward_hook(keep)
        try:
            own_forward(model)(**inputs, use_cache=False)
        finally:
            handle.remove()
        return found[0]


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """A copy of a body's output with other hidden states."""
    changed = copy.copy(output)
    changed.last_hidden_state = hidden
    return changed


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Within, a module that FSDP shards runs its forward alone.

    A hook gathers the head's weights once in each forward pass, and was called in `hidden`.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    hooks = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        module._forward_pre_hooks, module._forward_hooks = hooks


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # of accelerate's hooks, where there are any
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
