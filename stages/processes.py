"""Reads what torchrun or accelerate tell each process, without importing anything heavy."""

import os


def processes() -> int:
    """The number of processes. torch only knows it once they have connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))
