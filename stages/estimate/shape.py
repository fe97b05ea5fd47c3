"""config.json -> the size of a model and its operations per token, without loading weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from reflogp.stages.model.causal_lm import causal_config
from reflogp.stages.model.loading import loading
from reflogp.stages.train.model.policy import lora_targets

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE = ("num_experts_per_tok", "moe_topk")


@dataclass(frozen=True)
class Shape:
    """The shape of a causal language model.

    Attributes:
        parameters: number of weights.
        adapter: number of weights of a LoRA adapter; 0 if all weights are trained.
        body_flops: operations per token in all matrix products of the layers.
        attended_flops: operations per earlier token that a token attends to, over all layers.
        head_flops: operations of the head per row.
    """

    parameters: int
    adapter: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    body_flops: float
    attended_flops: float
    head_flops: float


def shape_of(
    folder: Path, lora_r: int, targets: str | None = None, *, trusted: bool = False
) -> Shape:
    """Return the shape of a checkpoint with a LoRA adapter of rank `lora_r` (0: none).

    Raises:
        InputError: config.json cannot be read, or is not that of a causal language model.
    """
    whole = causal_config(folder, trusted=trusted)
    with loading("config", folder), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(whole, trust_remote_code=trusted)
    config, body = whole.get_text_config(), model.base_model
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        adapter=_adapter(model, lora_r, targets) if lora_r else 0,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        body_flops=2 * _active(body, config),
        attended_flops=4 * config.num_hidden_layers * heads * width,
        head_flops=2 * config.hidden_size * config.vocab_size,
    )


def _active(body: nn.Module, config: Any) -> float:
    """Count the matrix weights that one token uses; of the experts, only the active ones."""
    embeddings = {p for m in body.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    experts, active = _first(config, _EXPERTS), _first(config, _ACTIVE)
    share = active / experts if experts and active else 1.0
    return sum(
        parameter.numel() * (share if "experts." in name and "shared" not in name else 1.0)
        for name, parameter in body.named_parameters()
        if parameter.dim() > 1 and parameter not in embeddings
    )


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)


def _adapter(model: Any, rank: int, targets: str | None) -> int:
    wanted = lora_targets(model, targets)
    count = 0
    for name, module in model.base_model.named_modules():
        named = name.rpartition(".")[2] in wanted
        if isinstance(module, nn.Linear) and named:
            count += rank * (module.in_features + module.out_features)
    return count
