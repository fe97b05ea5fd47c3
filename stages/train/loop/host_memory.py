"""Limits the memory that a run on a CPU holds without using it.

Passes have different lengths, and each length leaves something behind. oneDNN caches up to 1,024
kernels, compiled for a shape each: 37 steps of four passes with LoRA took 4.1 GB, and 3.1 GB with a
small cache. glibc reuses a freed block only for a smaller tensor, so a forward pass leaves holes of
0.3 GB in total while the gradients of all weights exist.
"""

import ctypes
import os
from functools import cache
from typing import Any

_KERNELS = "64"  # a pass uses about thirty, shared by all layers; they compile in 12 ms


def keep_few_kernels() -> None:
    """Limit oneDNN's cache of kernels. Call this before its first kernel."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)


def give_back() -> None:
    """Return freed memory to the system. Does nothing if the C library cannot."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
