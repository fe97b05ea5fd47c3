"""A LoRA adapter on top of a checkpoint, as PEFT saves it: what is in it, and loading the two.

The adapter is never merged where log-probs are computed: in bfloat16 the sum would be rounded, and
the reference would no longer be the model that training continues from.
"""

import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import loading

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
        joined = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, config=config)
    _require_all_used(joined, adapter)
    return joined


def merged(model: Any, adapter: Path) -> Any:
    """`model` with the adapter merged into its weights, and what PEFT froze trainable again.

    An adapter on a head that shares its weights with the embeddings changes one of the two, so
    they are separate weights afterwards, and the configuration says so.

    Args:
        model: the transformers model that it was trained on.
        adapter: its folder.

    Raises:
        InputError: it cannot be loaded, or does not fit the model.
    """
    joined = load_adapter(model, adapter)
    _untie(joined.get_base_model())
    return joined.merge_and_unload().requires_grad_(True)


def _untie(model: Any) -> None:
    """Give the head weights of its own, where an adapter is on it or on the embeddings."""
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
    """What PEFT has wrapped, of a module that it has."""
    for name in ("base_layer", "original_module", "base_layer"):
        module = getattr(module, name, module)
    return module


def _require_all_used(joined: Any, adapter: Path) -> None:
    """Refuse an adapter of which a part has no place in the model: PEFT leaves that part out."""
    from peft import get_peft_model_state_dict

    used = get_peft_model_state_dict(joined, save_embedding_layers=False)
    stored = tensor_shapes(adapter)
    unused = sorted(name for name in stored if ".lora_" in name and name not in used)
    if unused and stored.keys() >= used.keys():  # else PEFT has renamed what an older one saved
        raise InputError(
            f"{adapter}: {len(unused)} of the adapter's weights have no place in the model, such "
            f"as {unused[0]}. Give the model that the adapter was trained on."
        )


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
