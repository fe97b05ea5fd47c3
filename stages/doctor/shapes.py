"""Known shapes of models, as checkpoints of random weights: speed does not depend on their values.

No download and no tokenizer: a config and bfloat16 safetensors, made on the machine that runs them.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

Shape = Literal["llama-1b", "llama-8b", "qwen-1.5b", "smollm2-135m", "tiny"]

_LLAMA_3: dict[str, Any] = {"model_type": "llama", "vocab_size": 128_256,
                            "num_attention_heads": 32, "num_key_value_heads": 8,
                            "rope_theta": 500_000.0}  # fmt: skip

_SHAPES: dict[Shape, dict[str, Any]] = {
    # as Llama 3.2 1B, Llama 3.1 8B, Qwen2.5 1.5B and SmolLM2 135M have them
    "llama-1b": _LLAMA_3 | {"hidden_size": 2048, "intermediate_size": 8192,
                            "num_hidden_layers": 16, "tie_word_embeddings": True},
    "llama-8b": _LLAMA_3 | {"hidden_size": 4096, "intermediate_size": 14_336,
                            "num_hidden_layers": 32, "tie_word_embeddings": False},
    "qwen-1.5b": {"model_type": "qwen2", "vocab_size": 151_936, "num_attention_heads": 12,
                  "num_key_value_heads": 2, "rope_theta": 1_000_000.0, "hidden_size": 1536,
                  "intermediate_size": 8960, "num_hidden_layers": 28, "tie_word_embeddings": True},
    "smollm2-135m": {"model_type": "llama", "vocab_size": 49_152, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "hidden_size": 576, "intermediate_size": 1536,
                     "num_hidden_layers": 30, "rope_theta": 100_000.0,
                     "tie_word_embeddings": True},
    # shows that the benchmark runs, on any machine
    "tiny": {"model_type": "llama", "vocab_size": 1024, "num_attention_heads": 2,
             "num_key_value_heads": 2, "hidden_size": 128, "intermediate_size": 256,
             "num_hidden_layers": 2, "tie_word_embeddings": True},
}  # fmt: skip


def config_of(shape: Shape, layers: int | None = None) -> PretrainedConfig:
    """The transformers config of a shape, with all of its layers or the first ones only."""
    fields = _SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    return AutoConfig.for_model(**fields, max_position_embeddings=4096, dtype="bfloat16")


def make_checkpoint(folder: Path, shape: Shape, seed: int = 0, layers: int | None = None) -> Path:
    """Save a model of random bfloat16 weights to `folder`; drawn on the GPU where there is one."""
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config_of(shape, layers), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the contenders need the room
    return folder
