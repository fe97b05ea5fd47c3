"""Tiny quantised checkpoints, written by hand in the formats that the field's tools write.

Beside each stands the same model with its weights dequantised to float32, as the truth.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
Quantized = tuple[dict[str, Tensor], Tensor]
"""What is stored for a weight [out, in], by the end of its name; and the weight dequantised."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def int8(weight: Tensor) -> Quantized:
    """compressed-tensors, W8A8: int8 with a scale for each row.

    Of its 255 steps 15 are used, so that the quantisation shows beside the rounded activations.
    """
    scale = weight.abs().amax(1, keepdim=True) / 7
    rounded = (weight / scale).round().to(torch.int8)
    return {"weight": rounded, "weight_scale": scale}, rounded * scale


def fp8(weight: Tensor) -> Quantized:
    """compressed-tensors, FP8 with a scale for the whole weight."""
    scale = weight.abs().amax().reshape(1) / 448
    rounded = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": rounded, "weight_scale": scale}, rounded.float() * scale


def int4(weight: Tensor) -> Quantized:
    """compressed-tensors, W4A16: symmetric groups, packed along the input."""
    values, scale = _symmetric(weight)
    stored = {
        "weight_packed": _pack(values + 8, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    return stored, values * scale.repeat_interleave(GROUP, 1)


def gptq(weight: Tensor) -> Quantized:
    """AutoGPTQ: symmetric groups, packed along the input; stored zero points are one too low."""
    values, scale = _symmetric(weight)
    stored = {
        "qweight": _pack((values + 8).T, 0),
        "qzeros": _pack(torch.full_like(scale.T, 7, dtype=torch.int64), 1),
        "scales": scale.T.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return stored, values * scale.half().float().repeat_interleave(GROUP, 1)


def awq(weight: Tensor) -> Quantized:
    """AutoAWQ: groups with zero points, packed along the output, in an order of its own."""
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15).long()
    values = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 15).long()
    stored = {
        "qweight": _pack(_interleaved(values.flatten(1).T), 1),
        "qzeros": _pack(_interleaved(zero.T), 1),
        "scales": scale.T.half(),
    }
    return stored, ((values - zero[..., None]) * scale[..., None]).flatten(1)


def _symmetric(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values in -8 to 7, int64 [out, in], and the scale of each group, [out, in / GROUP]."""
    grouped = weight.unflatten(1, (-1, GROUP))
    scale = (grouped.abs().amax(2) / 7).half().float()
    return (grouped / scale[..., None]).round().clamp(-8, 7).long().flatten(1), scale


def _pack(values: Tensor, axis: int) -> Tensor:
    """Eight values of 4 bits in each int32, the first in the lowest bits."""
    bits = 4 * torch.arange(8)
    shifts = bits[:, None] if axis == 0 else bits
    packed = (values.unflatten(axis, (-1, 8)) << shifts).sum(axis + 1)
    return packed.to(torch.int32).contiguous()


def _interleaved(values: Tensor) -> Tensor:
    return values.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1)


def _compressed(bits: int, kind: str, layout: str, activations: bool, **weights: Any) -> Any:
    scheme = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False} | weights
    inputs = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": True,
              "strategy": "token" if kind == "int" else "tensor"}  # fmt: skip
    group = {
        "targets": ["Linear"],
        "weights": scheme,
        "input_activations": inputs if activations else None,
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


KINDS: dict[str, tuple[Callable[[Tensor], Quantized], dict[str, Any]]] = {
    "int8": (int8, _compressed(8, "int", "int-quantized", True, strategy="channel")),
    "fp8": (fp8, _compressed(8, "float", "float-quantized", True, strategy="tensor")),
    "int4": (
        int4,
        _compressed(4, "int", "pack-quantized", False, strategy="group", group_size=GROUP),
    ),
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"},
    ),
}  # fmt: skip


def quantize(checkpoint: Path, folder: Path, kind: str, dtype: torch.dtype) -> tuple[Path, Path]:
    """Save `checkpoint` with its linear layers quantised, and dequantised, under `folder`.

    Returns:
        Folders of the quantised checkpoint and of its float32 truth. What is not quantised is in
        `dtype` in the first, and has the values of `dtype` in the second.
    """
    method, config = KINDS[kind]
    quantized, plain = (shutil.copytree(checkpoint, folder / name) for name in (kind, "plain"))
    stored: dict[str, Tensor] = {}
    truth: dict[str, Tensor] = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if "proj" in name:
            parts, truth[name] = method(weight.to(dtype).float())
            stem = name.removesuffix("weight")
            stored |= {stem + end: part.contiguous() for end, part in parts.items()}
        else:
            stored[name] = weight.to(dtype)
            truth[name] = stored[name].float()
    save_file(stored, quantized / "model.safetensors", {"format": "pt"})
    save_file(truth, plain / "model.safetensors", {"format": "pt"})
    path = quantized / "config.json"
    changes = {"quantization_config": config, "dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return quantized, plain
