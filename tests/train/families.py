"""Tiny policies of any family, with windows and chunks of 16 tokens."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from reflogp.stages.doctor.families import config_of


def tiny(model_type: str, attention: str | None = None, **more: Any) -> Any:
    """The same policy every time, in float32 and by default with the attention that transformers
    chooses."""
    torch.manual_seed(0)
    config = config_of(model_type, **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.15)
    return model.eval()
