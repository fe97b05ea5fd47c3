"""Take the frozen reference model out of DPO training: the Python API.

Names are imported on first use, so `import reflogp` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reflogp import losses
    from reflogp.data_schemas.errors import InputError, ReflogpError
    from reflogp.pipeline.api import Run, open, precompute, train  # noqa: A004
    from reflogp.stages.cache.opened import Cache
    from reflogp.stages.interop.trl import CachedDPOTrainer

__all__ = [
    "Cache",
    "CachedDPOTrainer",
    "InputError",
    "ReflogpError",
    "Run",
    "losses",
    "open",
    "precompute",
    "train",
]

_HOMES = {
    "Cache": "reflogp.stages.cache.opened",
    "CachedDPOTrainer": "reflogp.stages.interop.trl",
    "InputError": "reflogp.data_schemas.errors",
    "ReflogpError": "reflogp.data_schemas.errors",
    "Run": "reflogp.pipeline.api",
    "open": "reflogp.pipeline.api",
    "precompute": "reflogp.pipeline.api",
    "train": "reflogp.pipeline.api",
}

if not TYPE_CHECKING:  # type checkers would take every name for one of the API's

    def __getattr__(name: str) -> Any:
        """Import a name of the API from its module."""
        if name == "losses":
            return import_module("reflogp.losses")
        if name not in _HOMES:
            raise AttributeError(f"module 'reflogp' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    return __all__
