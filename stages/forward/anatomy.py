"""Splits a causal language model into its body, which returns hidden states, and its head."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

_APART = "_reflogp_head_apart"  # the model's attribute that caches whether the split works
_ROUNDING = 1e-2  # of the largest logit
_OWN = "_reflogp_own_forward"  # attribute that keeps the replaced forward


class NotApartError(Exception):
    """The model's head cannot run without its body; use the logits of the whole forward pass."""


class Anatomy:
    """A causal language model, split into its head and everything before it.

    A hook on the head captures its input. This assumes nothing about the modules before it: OPT's
    head reads from a part of its `base_model`, Phi's from the whole.
    """

    def __init__(self, model: nn.Module) -> None:
        """Split a transformers model, wrapped (PEFT, DDP) or not.

        Raises:
            NotApartError: the head is inside the body, or the model has no head.
        """
        inner: Any = getattr(model, "module", model)
        self._lm: Any = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        # every module that the language model may call before its head: a body or part of one
        self._bodies = [m for m in self._lm.modules() if _is_body(m) and m is not self._lm]
        head = self._lm.get_output_embeddings()
        within = {module for body in self._bodies for module in body.modules()}
        if head is None or head in within or not getattr(self._lm, _APART, True):
            raise NotApartError
        self._output_embeddings: nn.Module = head
        self._outputs: dict[nn.Module, Any] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters outside the body, and those of the head.

        With FSDP they are unsharded, and are the ones the head uses, only after `hidden` has run.
        """
        of_bodies = {parameter for body in self._bodies for parameter in body.parameters()}
        outside = [p for p in self._lm.parameters() if p not in of_bodies]
        candidates = dict.fromkeys([*outside, *self._output_embeddings.parameters()])
        return [p for p in candidates if p.requires_grad]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] of hidden states [n, hidden]. Call `hidden` first.

        This runs the model's own forward pass, which also scales or caps the logits.
        """
        nothing = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        own_head = self._output_embeddings.forward
        with contextlib.ExitStack() as stack:
            for body, output in self._outputs.items():
                given = _with_hidden(output, output.last_hidden_state.expand(1, len(hidden), -1))
                stack.enter_context(_replaced_forward(body, _giving(given)))
            stack.enter_context(_without_hooks(self._output_embeddings))
            stack.enter_context(
                _replaced_forward(
                    self._output_embeddings, lambda *_, **__: own_head(hidden.unsqueeze(0))
                )
            )
            logits: Tensor = own_forward(self._lm)(input_ids=nothing, use_cache=False).logits
        return logits.squeeze(0)

    def hidden(self, model: nn.Module, rows: Tensor, **inputs: Any) -> Tensor:
        """The head's input, [n, hidden], at flat positions `rows` of a forward pass.

        The whole of `model` runs, so its wrappers work as usual, but the head gets one row only.

        Raises:
            NotApartError: the head did not run exactly once on the hidden states of all positions;
                or, in the first call, the head alone does not reproduce the model's logits.
        """
        found: list[Tensor] = []
        first: list[Tensor] = []
        shape = inputs["input_ids"].shape

        def keep(_: nn.Module, arguments: Any) -> Any:
            states = arguments[0]
            if states.shape[:-1] != shape:
                return None
            found.append(states.flatten(0, 1).index_select(0, rows))
            first.append(states[:1, :1])
            return first[-1], *arguments[1:]

        def note(body: nn.Module, _: Any, output: Any) -> None:
            if isinstance(states := getattr(output, "last_hidden_state", None), Tensor):
                self._outputs[body] = _with_hidden(output, states[:1, :1])

        handles = [body.register_forward_hook(note) for body in self._bodies]
        handles.append(self._output_embeddings.register_forward_pre_hook(keep))
        try:
            output = own_forward(model)(**inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if not hasattr(self._lm, _APART):
            apart = len(found) == 1 and bool(self._outputs) and self._gives(output.logits, first[0])
            setattr(self._lm, _APART, apart)
        if not getattr(self._lm, _APART):
            raise NotApartError
        return found[0]

    @torch.no_grad()
    def _gives(self, logits: Tensor, hidden: Tensor) -> bool:
        """Whether the head alone, on hidden states [1, 1, hidden], gives the model's logits."""
        found = self.head(hidden.flatten(0, 1))
        scale = float(logits.abs().max())
        return torch.allclose(found, logits[0], rtol=0, atol=_ROUNDING * scale, equal_nan=True)


def _is_body(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel)


def _giving(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """Copy a body's output with other hidden states."""
    changed = copy.copy(output)
    changed.last_hidden_state = hidden
    return changed


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """In the block, a module that FSDP shards runs without its hooks.

    FSDP's hook gathers the head's weights once per forward pass, and `hidden` has triggered it.
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
    own = module.__dict__.get("forward")  # set by accelerate's hooks, if it has any
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def replace_forward(model: nn.Module, forward: Callable[..., Any]) -> None:
    """Make calls of `model`, wrapped or not, run `forward`."""
    if not hasattr(model, _OWN):
        setattr(model, _OWN, model.forward)
    model.forward = forward


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward of `model` before `replace_forward`; or the model itself, if nothing replaced it.

    A replaced forward is returned without hooks: they have already run around the replacement.
    """
    own: Callable[..., Any] = getattr(model, _OWN, model)
    return own
