"""Writes the trained policy in the format that transformers and vLLM load."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from reflogp.stages.model.adapter import merged
from reflogp.stages.model.causal_lm import load_causal_lm
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import load_saved_tokenizer
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.model.precision import round_weights, rounded, spread_weights


def save_policy(
    trainer: PreferenceTrainer, folder: Path, start: Checkpoint, template: str | None = None
) -> None:
    """Write the adapter or the model, with the tokenizer. All processes must call this.

    Args:
        trainer: holds the policy.
        folder: to write to.
        start: what training started from. A full model is written in its dtype.
        template: source or name of the chat template that the cache was made with, if it is not
            the tokenizer's default.
    """
    # with FSDP each process has a shard, and gathering them takes all processes
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model)
    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_world_process_zero():
        return
    if isinstance(policy, PeftModel):
        policy.save_pretrained(folder, state_dict=state)
    else:
        _save_whole(policy, state, folder, getattr(torch, start.dtype))
    tokenizer = load_saved_tokenizer(start.tokenizer, trusted=start.trusted)
    if template is not None:
        own = tokenizer.chat_template
        named = own if isinstance(own, dict) else {}
        # a policy that is not the reference can lack a template of the name
        tokenizer.chat_template = named.get(template, template if "{" in template else own)
    tokenizer.save_pretrained(folder)


def merge_adapter(folder: Path, start: Checkpoint) -> None:
    """Merge the adapter in `folder` into `start`, and replace the adapter by the merged model.

    The merge is in float32. Changes smaller than half the spacing of bfloat16 would be lost in
    rounding, so the weights are spread first.
    """
    base: Any = load_causal_lm(start.folder, torch.float32, trusted=start.trusted)
    if start.dtype == "bfloat16":
        spread_weights(base)
    model: Any = merged(base, folder)
    round_weights(model, getattr(torch, start.dtype))
    model.save_pretrained(folder)
    for path in folder.glob("adapter_*"):
        path.unlink()


def _save_whole(policy: Any, state: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write float32 weights, rounded to the checkpoint's `dtype`."""
    with torch.device("meta"):  # `state` has the weights; a second copy could exceed the memory
        empty = type(policy)(policy.config).to(dtype)
    empty.generation_config = policy.generation_config
    state = {name: rounded(policy, name, tensor, dtype) for name, tensor in state.items()}
    empty.save_pretrained(folder, state_dict=state)
