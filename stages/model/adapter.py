"""Reads a LoRA adapter that PEFT saved, and loads it on top of its checkpoint.

Scoring never merges the adapter. In bfloat16 the merged weights would be rounded, and the reference
would no longer be the model that training starts from.
"""

import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import loading

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def load_adapter(
    model: Any, adapter: Path, *, trainable: bool = False, dropout: float = 0.0
) -> Any:
    """Load an adapter on top of `model`. Its weights are float32, whatever the model's dtype.

    Args:
        model: the transformers model that the adapter was trained on.
        adapter: folder of the adapter.
        trainable: whether the adapter gets gradients.
        dropout: the adapter's dropout in training mode; replaces the saved value.

    Raises:
        InputError: the adapter cannot be loaded, or does not fit the model.
    """
    # imported here because peft is slow to import, and an up-to-date run does not need it
    from peft import PeftConfig, PeftModel

    with loading("adapter", adapter), warnings.catch_warnings():
        # PEFT only warns, and continues with the keys it found: that is another model
        warnings.filterwarnings("error", message="Found missing adapter keys")
        config = PeftConfig.from_pretrained(adapter)
        config.lora_dropout = dropout
        config.base_model_name_or_path = model.config.name_or_path
        joined = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, config=config)
    _require_all_used(joined, adapter)
    return joined


def merged(model: Any, adapter: Path) -> Any:
    """Merge an adapter into the weights of `model`, and make all of them trainable again.

    If the head shares its weights with the embeddings, an adapter on either changes only one of
    them. They are then untied, in the configuration too.

    Args:
        model: the transformers model that the adapter was trained on.
        adapter: folder of the adapter.

    Raises:
        InputError: the adapter cannot be loaded, or does not fit the model.
    """
    joined = load_adapter(model, adapter)
    _untie(joined.get_base_model())
    return joined.merge_and_unload().requires_grad_(True)


def _untie(model: Any) -> None:
    """Give the head its own weights if it or the embeddings have an adapter."""
    from torch import nn

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or all(module is _inside(module) for module in (embeddings, head)):
        return
    inner = _inside(head)
    if inner.weight is _inside(embeddings).weight:
        inner.weight = nn.Parameter(inner.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _inside(module: Any) -> Any:
    """The module that PEFT wrapped; `module` itself if PEFT did not wrap it."""
    for name in ("base_layer", "original_module", "base_layer"):
        module = getattr(module, name, module)
    return module


def _require_all_used(joined: Any, adapter: Path) -> None:
    """Refuse an adapter with weights that the model has no place for: PEFT would ignore them."""
    from peft import get_peft_model_state_dict

    used = get_peft_model_state_dict(joined, save_embedding_layers=False)
    stored = tensor_shapes(adapter)
    unused = sorted(name for name in stored if ".lora_" in name and name not in used)
    if unused and stored.keys() >= used.keys():  # else PEFT renamed the keys of an older version
        raise InputError(
            f"{adapter}: {len(unused)} of the adapter's weights do not belong to the model, for "
            f"example {unused[0]}. Give the model that the adapter was trained on."
        )


def tensor_shapes(adapter: Path) -> dict[str, list[int]]:
    """The name and shape of each of the adapter's weights.

    Raises:
        InputError: the file is missing or damaged.
    """
    with (
        loading("adapter", adapter),
        safe_open(adapter / WEIGHTS, framework="pt") as file,
    ):
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
