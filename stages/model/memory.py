"""Whether a checkpoint's weights fit in memory. Only the headers of its files are read."""

from pathlib import Path
from typing import Literal

import psutil
import torch

from reflogp.data_schemas.manifest import Dtype
from reflogp.stages.model.stored_weights import stored_weights

_PACKED = {torch.int32: 8}  # 4-bit weights per element in quantized checkpoints
_SHARE_OF_MEMORY = 0.7  # for the weights; the rest is for activations


def lacks_room(checkpoint: Path, dtype: Dtype, device: Literal["cpu", "cuda"]) -> str | None:
    """Why the weights of `checkpoint` in `dtype` do not fit on `device`; None if they fit.

    Raises:
        InputError: the weights cannot be read.
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
    """The number of weights in the checkpoint's files."""
    weights = stored_weights(checkpoint).values()
    return sum(weight.numel() * _PACKED.get(weight.dtype, 1) for weight in weights)
