"""In which dtype full fine-tuning keeps weights and computes; and AdamW for weights of few bits.

At a rate of 5e-6 most updates of bfloat16 weights round to nothing, so weights are updated in
float32, whatever computes. Where that is bfloat16 there are two ways. One process holds bfloat16
weights and an optimizer with float32 copies of them (Micikevicius et al. 2018, 1710.03740, section
3.1): the forward pass is then the one that scored the reference, and its activations take half the
memory of the other way's, float32 weights under autocast, which keeps the residual stream and each
norm in float32. DDP reduces gradients in their weights' dtype, and FSDP has bfloat16 copies of its
own: several processes take the second way.

That is not enough. A weight of a bfloat16 checkpoint stands in the very middle between what rounds
up and what rounds down, so that at this rate most stay as they are for the first fifty steps, where
the forward pass sees them rounded: in both ways. Six steps of SmolLM2 on 16 pairs bring the margin
to 0.71 in float32, to 0.03 with copies, to -0.01 under autocast. So weights are spread at random at
the start, each within what rounds to it. They are the same to bfloat16, and from then on as many
round to a neighbour as their updates are worth: the margin comes to 0.70 with copies.

What was scored in float16 is trained in float32. Gradients below 6e-8 vanish in float16, which
takes a loss scaler that skips steps; float32 takes twice the memory and loses nothing.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from reflogp.data_schemas.manifest import Dtype
from reflogp.stages.processes import processes
from reflogp.stages.train.config import TrainConfig


def computed_in(dtype: Dtype) -> Dtype:
    """The dtype of a policy's forward and backward pass, of a cache that was scored in `dtype`."""
    return "float32" if dtype == "float16" else dtype


def weights_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype that the policy's weights are held in, in this process.

    Args:
        config: of the run.
        dtype: of the cache.
    """
    dtype = computed_in(dtype)
    alone = processes() == 1 and not config.fsdp
    if config.lora_r or (dtype == "bfloat16" and alone and _GRADIENTS_MAY_DIFFER):
        return dtype
    return "float32"


def autocast_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype of autocast, "float32" for none; arguments as of `weights_dtype`."""
    dtype = computed_in(dtype)
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

    Copies are spread at the start, so that weights are what their copies are on average, whatever
    is lost of each.

    Gradients, too, are summed in float32 over the passes of a step. A float32 weight is its own
    copy, so that a run may go on from one process to several, or back, and lose nothing.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **options: Any) -> None:
        groups = [{**group, "params": list(group["params"])} for group in params]
        self._weights: list[Any] = [weight for group in groups for weight in group["params"]]
        generator = torch.Generator(self._weights[0].device).manual_seed(0)
        for group in groups:
            group["params"] = [_master(weight, generator) for weight in group["params"]]
        super().__init__(groups, **options)
        self._masters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the copies by the weights' gradients, then the weights."""
        copied = [(w, m) for w, m in zip(self._weights, self._masters, strict=True) if w is not m]
        for weight, master in copied:
            master.grad = weight.grad
        result = super().step(closure)
        for weight, master in copied:
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
        """Go on from `state_dict`, whatever the weights are."""
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "masters"})
        found = zip(self._weights, self._masters, state_dict["masters"], strict=True)
        for weight, master, saved in found:
            master.copy_(saved)
            weight.copy_(master)


def spread(values: Tensor, generator: torch.Generator) -> Tensor:
    """Values of bfloat16, each moved at random within what rounds to it; 0 and infinity stay.

    Args:
        values: float32, any shape, whose numbers are of bfloat16.
        generator: on their device.

    Returns:
        float32 of that shape; `.bfloat16()` gives `values` back.
    """
    # four numbers of 16 bits from each draw, which takes a fifth of the time of drawing each
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    draws.random_(-(2**63), None, generator=generator)
    within = draws.view(torch.int16)[: values.numel()].view(values.shape)
    # bfloat16 is the upper half of a float32's bits; in the lower one, 2^15 up or down is a tie
    within.clamp_(min=1 - 2**15)
    moved = (values.view(torch.int32) + within).view(torch.float32)
    return torch.where((values == 0) | values.isinf(), values, moved)


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Spread a model's float32 weights that are of bfloat16, and will be rounded to it.

    Autocast and FSDP round in each forward pass. What stays as it is until it is written (under
    autocast embeddings and norms) would else lose its small changes there. Each process draws the
    same.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        near = rounded(model, name, weight, torch.bfloat16)
        if near.dtype == torch.bfloat16 and torch.equal(weight, near.float()):
            weight.copy_(spread(weight, generator))


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round a float32 model's weights to `dtype`, in place."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = rounded(model, name, tensor.data, dtype)


def rounded(model: nn.Module, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 weight in `dtype`; as it is if transformers holds it in float32 beside `dtype`.

    So it does few, as the bias by which DeepSeek-V3 chooses experts. Integers stay, too.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    stays = any(fnmatch(name, f"*{part}*") for part in kept) or not weight.is_floating_point()
    return weight if stays else weight.to(dtype)


def _master(weight: Any, generator: torch.Generator) -> nn.Parameter:
    """A float32 copy of a weight, spread; the weight itself if it is float32."""
    if weight.dtype == torch.float32:
        return weight  # type: ignore[no-any-return]
    weight.grad_dtype = torch.float32
    return nn.Parameter(spread(weight.detach().float(), generator))


_GRADIENTS_MAY_DIFFER = hasattr(Tensor, "grad_dtype")  # in dtype, from their weights; torch 2.10
