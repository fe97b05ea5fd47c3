"""Giving a model another forward pass, and still reaching its own.

DDP and FSDP do their work around the forward pass of what they wrap: weights outside of it are not
gathered. So the head, which runs apart from the body, must be within: the policy's forward pass is
replaced by one that gives log-probs, and that one takes the model apart.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

_OWN = "_reflogp_own_forward"


def replace_forward(model: nn.Module, forward: Callable[..., Any]) -> None:
    """Let calls of `model`, wrapped or not, run `forward`."""
    if not hasattr(model, _OWN):
        setattr(model, _OWN, model.forward)
    model.forward = forward


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """What `model` ran before its forward pass was replaced; or the model, if it was not.

    The hooks of a replaced one have run already, around the replacement.
    """
    own: Callable[..., Any] = getattr(model, _OWN, model)
    return own
