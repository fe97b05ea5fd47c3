"""In which dtype full fine-tuning keeps weights and computes; and AdamW for weights of few bits.

At a rate of 5e-6 most updates of bfloat16 weights round to nothing, so weights are updated in
float32, whatever computes. Where that is bfloat16 there are two ways. One process holds bfloat16
weights and an optimizer with float32 copies of them (Micikevicius et al. 2018, 1710.03740, section
3.1): the forward pass is then the one that scored the reference, and its activations take half the
memory of the other way's, float32 weights under autocast, which keeps the residual stream and each
norm in float32. DDP reduces gradients in their weights' dtype, and FSDP has bfloat16 copies of its
own: several processes take the second way.

To round the copies to the nearest is not enough. A checkpoint of bfloat16 stands in the very middle
between what rounds up and what rounds down, so that at this rate most weights stay as they are for
the first fifty steps, in the forward pass of autocast, too. Six steps of SmolLM2 on 16 pairs bring
the margin to 0.71 in float32, to 0.03 with copies that are rounded to the nearest, to 0.07 under
autocast; and to 0.70 if each is rounded up as often as it is near the upper neighbour.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from data_schemas.manifest import Dtype
from stages.processes import processes
from stages.train.config import TrainConfig


def weights_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype that the policy's weights are held in, in this process.

    Args:
        config: of the run.
        dtype: of the cache, which training computes in.
    """
    alone = processes() == 1 and not config.fsdp
    if config.lora_r or (dtype == "bfloat16" and alone and _GRADIENTS_MAY_DIFFER):
        return dtype
    return "float32"


def autocast_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype of autocast, "float32" for none; arguments as of `weights_dtype`."""
    # an adapter is float32 over frozen weights, and is in the forward pass as it is
    return "float32" if config.lora_r or weights_dtype(config, dtype) == dtype else dtype


def keeps_masters(arguments: TrainingArguments, weights: Iterable[Tensor]) -> bool:
    """Whether a run's optimizer is a MasterAdamW: all weights are trained, in bfloat16.

    Args:
        arguments: of the run.
        weights: of the policy, in this process.
    """
    if processes() > 1 or arguments.fsdp or not _GRADIENTS_MAY_DIFFER:
        return bool(arguments.bf16 and not arguments.fsdp)
    return any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in weights)


class MasterAdamW(torch.optim.AdamW):
    """AdamW over float32 copies of the weights, rounded into the weights after each step.

    They are rounded up or down by thresholds that are drawn once and for all, so that weights are
    what their copies are on average, whatever is lost of each, and equal copies give equal weights.

    Gradients, too, are summed in float32 over the passes of a step. A float32 weight is its own
    copy, so that a run may go on from one process to several, or back, and lose nothing.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **options: Any) -> None:
        groups = [{**group, "params": list(group["params"])} for group in params]
        self._weights: list[Any] = [weight for group in groups for weight in group["params"]]
        for group in groups:
            group["params"] = [_master(weight) for weight in group["params"]]
        super().__init__(groups, **options)
        self._masters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the copies by the weights' gradients, then the weights."""
        for weight, master in self._rounded():
            master.grad = weight.grad
        result = super().step(closure)
        for _, master in self._rounded():
            master.grad = None
        self._round()
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
        """Go on from `state_dict`, whatever the weights are."""
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "masters"})
        for master, saved in zip(self._masters, state_dict["masters"], strict=True):
            master.copy_(saved)
        self._round()

    def _rounded(self) -> list[tuple[Tensor, Tensor]]:
        """The weights that are not their own copies, each with its copy."""
        pairs = zip(self._weights, self._masters, strict=True)
        return [(weight, master) for weight, master in pairs if weight is not master]

    def _round(self) -> None:
        """Round the copies into the weights."""
        generators: dict[torch.device, torch.Generator] = {}
        for weight, master in self._rounded():
            if master.device not in generators:
                generators[master.device] = torch.Generator(master.device).manual_seed(0)
            round_into(weight, master, generators[master.device])


def round_into(weight: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Round float32 values to the bfloat16 below or above, to either as often as it is near.

    Args:
        weight: bfloat16, any shape; is overwritten.
        values: float32 of that shape; those of bfloat16 stay as they are.
        generator: draws a threshold for each value: the same one, the same thresholds.
    """
    # four thresholds of 16 bits from each draw, which costs a third of drawing them one by one
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    draws.random_(-(2**63), None, generator=generator)
    thresholds = draws.view(torch.int16)[: values.numel()].view(values.shape)
    # bfloat16 is the upper half of a float32: what is carried into it rounds away from 0
    bits = thresholds.to(torch.int32).add_(2**15).add_(values.view(torch.int32))
    weight.copy_(bits.bitwise_and_(-(2**16)).view(torch.float32))


def _master(weight: Any) -> nn.Parameter:
    """A float32 copy of a weight; the weight itself if it is float32."""
    if weight.dtype == torch.float32:
        return weight  # type: ignore[no-any-return]
    weight.grad_dtype = torch.float32
    return nn.Parameter(weight.detach().float())


_GRADIENTS_MAY_DIFFER = hasattr(Tensor, "grad_dtype")  # in dtype, from their weights; torch 2.10
