"""The policy: loaded so that its forward is the one that the cache was made with."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from data_schemas.errors import InputError
from data_schemas.manifest import Dtype
from stages.adapter import load_adapter
from stages.loading import loading
from stages.train.config import TrainConfig
from stages.train.precision import round_weights, spread_weights, weights_dtype


def load_policy(
    folder: Path, config: TrainConfig, dtype: Dtype, adapter: Path | None = None
) -> nn.Module:
    """Load the policy at its start: with a fresh LoRA adapter, or with `adapter` to train further.

    With LoRA the frozen weights keep the cache's dtype, or are rounded to 4 bits (Dettmers et al.
    2023, 2305.14314), and the adapter is float32. In full fine-tuning they have what
    stages/train/precision.py says, and an adapter is merged into them, in float32.

    Dropout is off, as everywhere in DPO: with it policy and reference would differ at the start.
    That of LoRA, which is asked for, is on, except in a head.

    Raises:
        InputError: the checkpoint cannot be loaded, or the LoRA settings do not fit the model.
    """
    if not config.lora_r:
        return _whole(folder, config, dtype, adapter)
    model = _loaded(folder, getattr(torch, weights_dtype(config, dtype)), config)
    if adapter is not None:
        policy = load_adapter(model, adapter, trainable=True, dropout=config.lora_dropout)
    else:
        policy = _adapted(model, config)
    head = policy.get_output_embeddings()
    if head is not None:
        _drop_nothing(head)  # parts of one that is trained run again in the backward pass
    return policy  # type: ignore[no-any-return]


def _adapted(model: nn.Module, config: TrainConfig) -> Any:
    """The model with a fresh adapter."""
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=lora_targets(model, config.lora_targets),
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(f"--lora-targets: {error}") from error


def _whole(folder: Path, config: TrainConfig, dtype: Dtype, adapter: Path | None) -> nn.Module:
    """The policy of full fine-tuning."""
    weights = getattr(torch, weights_dtype(config, dtype))
    loaded = weights if adapter is None else torch.float32
    model = _loaded(folder, loaded, config)
    if dtype == "bfloat16" and loaded == torch.float32:
        spread_weights(model)
    if adapter is not None:
        # PEFT froze what is now to be trained.
        model = load_adapter(model, adapter).merge_and_unload().requires_grad_(True)
        round_weights(model, weights)
    return model  # type: ignore[no-any-return]


def _loaded(folder: Path, weights: torch.dtype, config: TrainConfig) -> Any:
    """The checkpoint, without dropout."""
    more = {} if config.quantize == "none" else _four_bits(weights)
    with loading("policy", folder):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weights, **more)
    model.config.use_cache = False
    _drop_nothing(model)
    for module in model.modules():
        # On some CPUs bitsandbytes repacks weights in evaluation mode, for a kernel that passes no
        # gradient on; training after an evaluation would silently leave out the layers below.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _drop_nothing(model: nn.Module) -> None:
    """Switch dropout off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _four_bits(compute: torch.dtype) -> dict[str, Any]:
    """How QLoRA loads frozen weights: NF4 with quantised scales, on this process's device.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise InputError("--quantize nf4 takes bitsandbytes: pip install 'reflogp[qlora]'.")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": settings, "device_map": {"": PartialState().device}}


def lora_targets(model: nn.Module, wanted: str | None) -> str | list[str]:
    """What PEFT takes as target_modules for `wanted`, or for the default."""
    if wanted is not None:
        return wanted if wanted == "all-linear" else [name.strip() for name in wanted.split(",")]
    suffixes = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= suffixes else "all-linear"


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
