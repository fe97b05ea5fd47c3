"""FSDP on machines without a GPU: torch has it, accelerate switches it on for accelerators only."""

from typing import Any

from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin


def enable_fsdp_on_cpu(trainer: Any) -> None:
    """Switch FSDP on in a Trainer whose arguments ask for it, where accelerate left it off."""
    settings = trainer.args.fsdp_plugin_args
    if settings is None or trainer.is_fsdp_enabled:
        return
    plugin, state = FullyShardedDataParallelPlugin(**settings), trainer.accelerator.state
    if trainer.accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(trainer.accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    # AcceleratorState takes its type from PartialState again whenever somebody asks for it
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
