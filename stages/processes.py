"""What torchrun or accelerate tell each process that they start; nothing is imported for it."""

import os


def processes() -> int:
    """How many share the work; it is not to be asked of torch before they meet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This one's number, from 0."""
    return int(os.environ.get("RANK", "0"))
