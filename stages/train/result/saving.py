"""Writing the trained policy as transformers and vLLM load it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from reflogp.data_schemas.manifest import Dtype
from reflogp.stages.model.adapter import merged, tokenizer_folder
from reflogp.stages.model.causal_lm import load_causal_lm
from reflogp.stages.model.loading import load_saved_tokenizer
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.model.precision import round_weights, rounded, spread_weights


def save_policy(
    trainer: PreferenceTrainer, folder: Path, start: Path, adapter: Path | None, dtype: Dtype
) -> None:
    """Write the adapter or the model, with the tokenizer. All processes must call it.

    Args:
        trainer: holds the policy.
        folder: to write it to.
        start: the checkpoint that training started from.
        adapter: the adapter on top of it that training started from, or None.
        dtype: that a whole model is written in, as the checkpoint was.
    """
    # with FSDP each process has a part, which only all of them together can make whole
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model)
    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_world_process_zero():
        return
    if isinstance(policy, PeftModel):
        policy.save_pretrained(folder, state_dict=state)
    else:
        _save_whole(policy, state, folder, getattr(torch, dtype))
    load_saved_tokenizer(tokenizer_folder(start, adapter)).save_pretrained(folder)


def merge_adapter(folder: Path, start: Path, dtype: Dtype) -> None:
    """Write `start` with the adapter in `folder` merged into it, in place of the adapter.

    It is merged in float32. What it changes by less than half of a weight's spacing in bfloat16
    would be lost in rounding, so weights are spread before.
    """
    base: Any = load_causal_lm(start, torch.float32)
    if dtype == "bfloat16":
        spread_weights(base)
    model: Any = merged(base, folder)
    round_weights(model, getattr(torch, dtype))
    model.save_pretrained(folder)
    for path in folder.glob("adapter_*"):
        path.unlink()


def _save_whole(policy: Any, state: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write float32 weights rounded to `dtype`, which the checkpoint had."""
    with torch.device("meta"):  # the state is enough; a second model would be too much
        empty = type(policy)(policy.config).to(dtype)
    empty.generation_config = policy.generation_config
    state = {name: rounded(policy, name, tensor, dtype) for name, tensor in state.items()}
    empty.save_pretrained(folder, state_dict=state)
