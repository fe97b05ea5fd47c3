"""A LoRA adapter on top of a checkpoint, as PEFT saves it: what is in it, and loading the two.

The adapter is never merged where log-probs are computed: in bfloat16 the sum would be rounded, and
the reference would no longer be the model that training continues from.
"""

import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stages.loading import loading

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def tokenizer_folder(checkpoint: Path, adapter: Path | None) -> Path:
    """The folder whose tokenizer and template the model was tuned with: the adapter's, if any."""
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return adapter
    return checkpoint


def load_adapter(
    model: Any, adapter: Path, *, trainable: bool = False, dropout: float = 0.0
) -> Any:
    """`model` with the adapter on top, its weights in float32 whatever the dtype of the model.

    Args:
        model: the transformers model that it was trained on.
        adapter: its folder.
        trainable: whether it gets gradients.
        dropout: inside the adapter, in training mode, in place of what it was trained with.

    Raises:
        InputError: it cannot be loaded, or does not fit the model.
    """
    # Here, since it is slow to import and `tokenizer_folder` is asked for by what is up to date.
    from peft import PeftConfig, PeftModel

    with loading("adapter", adapter), warnings.catch_warnings():
        # PEFT goes on with what it found; it would be another model.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        config = PeftConfig.from_pretrained(adapter)
        config.lora_dropout = dropout
        config.base_model_name_or_path = model.config.name_or_path
        return PeftModel.from_pretrained(model, adapter, is_trainable=trainable, config=config)


def tensor_shapes(adapter: Path) -> dict[str, list[int]]:
    """Name and shape of each of the adapter's weights.

    Raises:
        InputError: the file is missing or damaged.
    """
    with (
        loading("adapter", adapter),
        safe_open(adapter / WEIGHTS, framework="pt") as file,
    ):
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
