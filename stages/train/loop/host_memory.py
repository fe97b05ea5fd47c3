"""Memory that a run on a CPU holds and does not use, and how it is kept small.

Passes differ in length, and each length leaves something behind. oneDNN keeps the kernels that it
compiled for a shape, up to 1,024 of them: 37 steps of four passes with LoRA came to 4.1 GB, and to
3.1 where it keeps few. And glibc keeps what is free: to use it, the next tensor must be smaller, so
that a forward pass leaves 0.3 GB of holes, beside the gradients of all weights.
"""

import ctypes
import os
from functools import cache
from typing import Any

_KERNELS = "64"  # a pass uses some thirty, the same in all its layers; they compile in 12 ms


def keep_few_kernels() -> None:
    """Let oneDNN forget kernels of lengths that are past; to be called before its first."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)


def give_back() -> None:
    """Give the system the memory that is free; nothing where the C library has no such call."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
