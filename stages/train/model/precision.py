"""Dtypes of full fine-tuning, and AdamW with float32 copies of bfloat16 weights.

At a learning rate of 5e-6, most updates of bfloat16 weights round to zero, so weights are updated
in float32, and spread within their rounding intervals at the start. After six steps of SmolLM2 on
16 pairs, the margin is 0.71 in float32, 0.70 this way, and 0.03 with float32 copies alone.
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

_GRADIENTS_MAY_DIFFER = hasattr(Tensor, "grad_dtype")  # in dtype from their weights; torch 2.10


def computed_in(dtype: Dtype) -> Dtype:
    """The dtype of the forward and backward pass for a cache that was scored in `dtype`.

    A policy scored in float16 is trained in float32. In float16, gradients below 6e-8 vanish, which
    requires a loss scaler that skips steps; float32 takes twice the memory and loses nothing.
    """
    return "float32" if dtype == "float16" else dtype


def weights_dtype(config: TrainConfig, dtype: Dtype) -> Dtype:
    """The dtype of the policy's weights in this process.

    There are two ways to compute in bfloat16. A single process holds bfloat16 weights, and its
    optimizer holds float32 copies (Micikevicius et al. 2018, 1710.03740, section 3.1). The forward
    pass is then the one that scored the reference. Several processes hold float32 weights and use
    autocast, because DDP reduces gradients in the dtype of the weights, and FSDP makes its own
    bfloat16 copies. Autocast keeps the residual stream and each norm in float32, so activations
    take twice the memory.

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
    """The dtype of autocast; "float32" means no autocast. Arguments as in `weights_dtype`."""
    dtype = computed_in(dtype)
    # an adapter computes in float32 on top of frozen weights, without autocast
    return "float32" if config.lora_r or weights_dtype(config, dtype) == dtype else dtype


def keeps_masters(arguments: TrainingArguments, weights: Iterable[Tensor]) -> bool:
    """Whether a run needs a MasterAdamW: all weights are trained, in bfloat16.

    Args:
        arguments: of the run.
        weights: of the policy, in this process.
    """
    if processes() > 1 or arguments.fsdp or not _GRADIENTS_MAY_DIFFER:
        return bool(arguments.bf16 and not arguments.fsdp)
    return any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in weights)


class MasterAdamW(torch.optim.AdamW):
    """AdamW over float32 copies of the weights, rounded into the weights after each step.

    The copies are spread at the start, so rounding errors of the weights cancel on average.

    Gradients are also summed in float32 over the passes of a step. A float32 weight is its own
    copy, so a run can resume with more or fewer processes without losing anything.
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
        """Update the copies with the weights' gradients, then the weights."""
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
        """AdamW's state and the copies, whose extra bits the weights do not have."""
        return super().state_dict() | {"masters": [m.detach() for m in self._masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the optimizer, the copies and the weights from `state_dict`."""
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "masters"})
        found = zip(self._weights, self._masters, state_dict["masters"], strict=True)
        for weight, master, saved in found:
            master.copy_(saved)
            weight.copy_(master)


def spread(values: Tensor, generator: torch.Generator) -> Tensor:
    """Move each bfloat16 value at random within its rounding interval. 0 and infinity stay.

    Every bfloat16 weight sits in the middle of its rounding interval, so small updates in float32
    are invisible to the forward pass for the first fifty steps: after six steps of SmolLM2 on 16
    pairs, the margin is 0.03 with float32 copies and -0.01 under autocast, against 0.71 in float32.
    Spread weights are the same in bfloat16, but the share of them that an update rounds to a
    neighbour is in proportion to the update: the margin is then 0.70 with copies.

    Args:
        values: float32, any shape, exactly representable in bfloat16.
        generator: on the device of `values`.

    Returns:
        float32 of that shape; `.bfloat16()` gives `values` back.
    """
    # each draw gives four 16-bit numbers, in a fifth of the time of drawing them one by one
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    draws.random_(-(2**63), None, generator=generator)
    within = draws.view(torch.int16)[: values.numel()].view(values.shape)
    # bfloat16 is the upper half of a float32; in the lower half, 2^15 up or down is a tie
    within.clamp_(min=1 - 2**15)
    moved = (values.view(torch.int32) + within).view(torch.float32)
    return torch.where((values == 0) | values.isinf(), values, moved)


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Spread a model's float32 weights that come from bfloat16 and will be rounded to it.

    Autocast and FSDP round weights in each forward pass. Embeddings and norms under autocast are
    rounded only when they are saved, and would lose small changes then. Every process draws the
    same numbers.
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
    """A float32 weight in `dtype`, unless transformers keeps it in float32 in models of `dtype`.

    transformers does so for a few weights, such as the bias of DeepSeek-V3's router. Integers stay
    too.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    stays = any(fnmatch(name, f"*{part}*") for part in kept) or not weight.is_floating_point()
    return weight if stays else weight.to(dtype)


def _master(weight: Any, generator: torch.Generator) -> nn.Parameter:
    """A spread float32 copy of a weight; the weight itself if it is float32."""
    if weight.dtype == torch.float32:
        return weight  # type: ignore[no-any-return]
    weight.grad_dtype = torch.float32
    return nn.Parameter(spread(weight.detach().float(), generator))
