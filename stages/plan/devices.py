"""What a device can do, by its data sheet, and how much of that stage one was seen to reach."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["h100", "h200", "a100", "l40s", "cpu"]


@dataclass(frozen=True)
class Peak:
    """One GPU, or one core.

    Attributes:
        flops: dense bfloat16 operations a second.
        memory: bytes; 0 where it is not the device's own.
        efficiency: share of `flops` that the pooling model is taken to reach.
        measured: whether that was measured, or is a guess.
    """

    flops: float
    memory: float
    efficiency: float
    measured: bool


# GPUs: dense bfloat16, without sparsity, of the data sheets; 0.4 of it is a guess for the prefill
# of models from 1B up, and too much for smaller ones. The core is one of docs/log.md: 0.2 TFLOP/s
# in matrix products of SmolLM2's shapes, and 4.99 HH-RLHF pairs/s of two.
DEVICES: dict[Device, Peak] = {
    "h100": Peak(989e12, 80e9, 0.4, measured=False),
    "h200": Peak(989e12, 141e9, 0.4, measured=False),
    "a100": Peak(312e12, 80e9, 0.4, measured=False),
    "l40s": Peak(362e12, 48e9, 0.4, measured=False),
    "cpu": Peak(0.2e12, 0, 0.62, measured=True),
}
