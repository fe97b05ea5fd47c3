"""Loads the policy so that its forward pass matches the one that scored the cache."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.adapter import load_adapter, merged
from reflogp.stages.model.causal_lm import load_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.precision import round_weights, spread_weights, weights_dtype

_HASHED_AT_ONCE = 2**22  # 32 MiB of integers
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B1

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def load_policy(start: Checkpoint, config: TrainConfig) -> nn.Module:
    """Load the policy as training starts it: with a new LoRA adapter, that of `start`, or none.

    With LoRA, the frozen weights keep the cache's dtype (float32 for float16, see precision.py) or
    are rounded to 4 bits (Dettmers et al. 2023, 2305.14314), and the adapter is float32. In full
    fine-tuning, precision.py chooses the dtype, and the adapter is merged into the weights
    in float32.

    The checkpoint stays in evaluation mode even after `policy.train()`. Its dropout, layer drop
    and router noise would make the policy differ from the reference at the start. The dropout of
    LoRA, which the user asks for, is active in training, except in a head.

    Raises:
        InputError: the checkpoint cannot be loaded, or the LoRA settings do not fit the model.
    """
    # with a mask, cuDNN's backward pass gives NaN at some lengths
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not config.lora_r:
        return _at_rest(_whole(start, config))
    model = _loaded(start, getattr(torch, weights_dtype(config, start.dtype)), config)
    if start.adapter is not None:
        policy = load_adapter(model, start.adapter, trainable=True, dropout=config.lora_dropout)
    else:
        policy = _adapted(model, config)
    head = policy.get_output_embeddings()
    if head is not None:
        _drop_nothing(head)  # the backward pass recomputes chunks of a trained head
    return _at_rest(policy)


def _adapted(model: nn.Module, config: TrainConfig) -> Any:
    """The model with a new adapter."""
    targets = lora_targets(model, config.lora_targets)
    # layers to leave alone can share their name with targets
    excluded = [name for name in _left_alone(model) if _own_name(name) in targets]
    every = config.lora_targets in (None, "all-linear")
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=excluded if every and excluded else None,
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(f"--lora-targets: {error}") from error


def _whole(start: Checkpoint, config: TrainConfig) -> nn.Module:
    """The policy for full fine-tuning."""
    weights = getattr(torch, weights_dtype(config, start.dtype))
    loaded = weights if start.adapter is None else torch.float32
    model = _loaded(start, loaded, config)
    if start.dtype == "bfloat16" and loaded == torch.float32:
        spread_weights(model)
    if start.adapter is not None:
        model = merged(model, start.adapter)
        round_weights(model, weights)
    return model  # type: ignore[no-any-return]


def _loaded(start: Checkpoint, weights: torch.dtype, config: TrainConfig) -> Any:
    """The checkpoint as a model for training."""
    more = {} if config.quantize == "none" else _four_bits(weights)
    model: Any = load_causal_lm(start.folder, weights, trusted=start.trusted, **more)
    model.config.use_cache = False
    for module in model.modules():
        # On some CPUs, bitsandbytes repacks weights in evaluation mode for a kernel that has no
        # backward pass. Training after an evaluation would silently skip the layers below.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _at_rest(policy: Any) -> nn.Module:
    """Make `policy` compute the same in training as in evaluation, except for its adapter.

    Modules switch dropout and other noise by their mode, under names that differ from model to
    model. `policy.train` therefore leaves every module in evaluation mode, except those whose mode
    others read: the policy itself, and layers that checkpoint activations in training mode only.
    These two are in evaluation mode while they compute.
    """
    for module in policy.modules():
        if module is policy or isinstance(module, GradientCheckpointingLayer):
            module.register_forward_pre_hook(_rest)
            module.register_forward_hook(_rise, always_call=True)
    policy.train = partial(_train_at_rest, policy)
    return policy  # type: ignore[no-any-return]


def _rest(module: Any, _: Any) -> None:
    module.mode_outside, module.training = module.training, False


def _rise(module: Any, *_: Any) -> None:
    module.training = module.mode_outside


def _train_at_rest(policy: nn.Module, mode: bool = True) -> nn.Module:
    """The replacement for `policy.train(mode)`."""
    nn.Module.train(policy, False)
    for name, module in policy.named_modules():
        if (
            module is policy
            or isinstance(module, GradientCheckpointingLayer | BaseTunerLayer)
            or ".lora_" in name
        ):
            module.training = mode
    return policy


def _drop_nothing(model: nn.Module) -> None:
    """Turn off the dropout of a head's adapter."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _four_bits(compute: torch.dtype) -> dict[str, Any]:
    """Arguments that load frozen weights for QLoRA: NF4 with quantized scales, on this device.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise InputError("--quantize nf4 needs bitsandbytes: pip install 'reflogp[qlora]'.")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": settings, "device_map": {"": PartialState().device}}


def lora_targets(model: nn.Module, wanted: str | None) -> list[str]:
    """Names of the modules that get an adapter: those in `wanted`, or all linear layers."""
    if wanted is not None and wanted != "all-linear":
        return [name.strip() for name in wanted.split(",")]
    head, left_alone = model.get_output_embeddings(), _left_alone(model)  # type: ignore[operator]
    return sorted(
        {
            _own_name(name)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
            if name not in left_alone
        }
    )


def _left_alone(model: nn.Module) -> list[str]:
    """Linear layers that "all-linear" excludes, besides the head.

    Routers: some return more than one tensor, which no adapter can be added to, and a policy whose
    experts change at every step no longer computes what the reference did. Two projections of
    state-space layers, whose weights the layers read without calling the modules: an adapter would
    have no effect until it is merged.
    """
    modules = dict(model.named_modules())
    found = []
    for name in modules:
        parent, _, own = name.rpartition(".")
        siblings = modules.get(parent)
        router = hasattr(siblings, "experts") and ("router" in own or "gate" in own.split("_"))
        read = own in {"out_proj", "dt_proj"} and hasattr(siblings, "conv1d")
        if router or read or parent in found:  # DBRX's router has a layer inside
            found.append(name)
    return found


def _own_name(module: str) -> str:
    """The end of a module's name that PEFT can find it by: q_proj; a number with its list."""
    parts = module.split(".")
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[start:])


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of trained parameters, and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


@torch.no_grad()
def trained_digest(model: nn.Module, reduce: Reduce | None = None) -> int:
    """A hash of the trained weights, without the A matrices of adapters.

    If no B has changed, a change of A has no effect.

    Args:
        model: the policy; with FSDP this process's shard of it.
        reduce: sums over the processes that hold a shard each.
    """
    total = 0
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for number, (name, parameter) in enumerate(trained):
        if "lora_A." in name:
            continue
        local: Any = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for part in local.flatten().split(_HASHED_AT_ONCE):
            bits = part.contiguous().view(_BITS[part.element_size()]).long()
            total += int((bits * (bits * _ODD + 1)).sum()) * (2 * number + 1)
    total %= 2**32
    if reduce is None:
        return total
    # float64 adds the numbers of a million processes without rounding
    return int(reduce(torch.tensor([float(total)], dtype=torch.float64)).item()) % 2**32
