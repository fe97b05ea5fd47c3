"""Whether a model's weights fit into the memory that is free."""

import math
from pathlib import Path
from typing import Literal

import psutil
import torch
from safetensors import safe_open

from data_schemas.manifest import Dtype
from stages.loading import loading

_PACKED = {"I32": 8}  # weights of 4 bits in quantised checkpoints
_SHARE_OF_MEMORY = 0.7  # for the weights; the rest is for activations


def lacks_room(checkpoint: Path, dtype: Dtype, device: Literal["cpu", "cuda"]) -> str | None:
    """Why the weights of `checkpoint` in `dtype` do not fit onto `device`, if they do not.

    Raises:
        InputError: they cannot be read.
    """
    if device == "cpu":
        room = psutil.virtual_memory().available
    elif torch.cuda.is_available():
        room = torch.cuda.mem_get_info()[0]
    else:
        return "there is no GPU"
    needed = _parameters(checkpoint) * (4 if dtype == "float32" else 2)
    if needed < _SHARE_OF_MEMORY * room:
        return None
    return f"{needed / 1e9:.0f} GB of {dtype} weights do not fit into {room / 1e9:.0f} GB"


def _parameters(checkpoint: Path) -> int:
    """Weights in the checkpoint's files; of pickled ones, as if they were 16 bits each."""
    count = sum(path.stat().st_size // 2 for path in checkpoint.glob("*.bin"))
    for path in checkpoint.glob("*.safetensors"):
        with loading("weights", path), safe_open(path, framework="pt") as file:
            weights = (file.get_slice(name) for name in file.keys())  # noqa: SIM118
            count += sum(
                math.prod(weight.get_shape()) * _PACKED.get(weight.get_dtype(), 1)
                for weight in weights
            )
    return count
