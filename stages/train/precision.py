"""In which dtype full fine-tuning keeps weights and computes; and AdamW for weights of few bits.

At a rate of 5e-6 most updates of bfloat16 weights round to nothing, so weights are updated in
float32, whatever computes. Where that is bfloat16 there are two ways. One process holds bfloat16
weights and an optimizer with float32 copies of them (Micikevicius et al. 2018, 1710.03740, section
3.1): the forward pass is then the one that scored the reference, and its activations take half the
memory of the other way's, float32 weights under autocast, which keeps the residual stream and each
norm in float32. DDP reduces gradients in their weights' dtype, and FSDP has bfloat16 copies of its
own: several processes take the second way.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data_schemas.manifest import Dtype
from stages.processes import processes
from stages.train.config import TrainConfig


def weights_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype that the policy's weights are held in, in this process.

    Args:
        config: of the run.
        dtype: of the cache, which training computes in.
    """
    if config.lora_r or (dtype == "bfloat16" and processes() == 1 and _GRADIENTS_MAY_DIFFER):
        return dtype
    return "float32"


def autocast_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype of autocast, "float32" for none; arguments as of `weights_dtype`."""
    # an adapter is float32 over frozen weights, and is in the forward pass as it is
    return "float32" if config.lora_r or weights_dtype(config, dtype) == dtype else dtype


def needs_masters(weights: Iterable[Tensor]) -> bool:
    """Whether any of the weights that are trained has too few bits to be updated by itself."""
    return any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in weights)


class MasterAdamW(torch.optim.AdamW):
    """AdamW over float32 copies of the weights, rounded into the weights after each step.

    Gradients, too, are summed in float32 over the passes of a step.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **options: Any) -> None:
        groups = [{**group, "params": list(group["params"])} for group in params]
        self._weights: list[Any] = [weight for group in groups for weight in group["params"]]
        for weight in self._weights:
            weight.grad_dtype = torch.float32
        for group in groups:
            group["params"] = [nn.Parameter(weight.detach().float()) for weight in group["params"]]
        super().__init__(groups, **options)
        self._masters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the copies by the weights' gradients, then the weights."""
        for weight, master in zip(self._weights, self._masters, strict=True):
            master.grad = weight.grad
        result = super().step(closure)
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.copy_(master)
            master.grad = None
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the weights' gradients."""
        for weight in self._weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, and the copies: what they have beyond the weights is not to be had again."""
        return super().state_dict() | {"masters": [m.detach() for m in self._masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; without copies, which several processes have not, from these."""
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "masters"})
        masters = state_dict.get("masters", self._weights)
        for weight, master, saved in zip(self._weights, self._masters, masters, strict=True):
            master.copy_(saved)
            weight.copy_(master)


_GRADIENTS_MAY_DIFFER = hasattr(Tensor, "grad_dtype")  # in dtype, from their weights; torch 2.10
