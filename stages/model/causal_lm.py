"""Loads a causal language model, for both stages, and refuses every other type of model by name."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import load_config, loading
from reflogp.stages.model.long_rope import by_sequence
from reflogp.stages.model.stored_weights import require_weights

# How much the rounding may change with other tokens, relative to the largest logit. In dense models
# that is next to nothing, since the shapes are the same; in mixtures the tokens change the batch of
# an expert.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
_ROUNDING_REDUCED = 1e-3
_ROUNDING_TOGETHER = 2e-2
_ROUNDING_OTHER_LENGTH = 0.1  # sequences of another length are products of another shape
CANNOT_RUN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$", re.IGNORECASE)
# Configuration fields (Gemma 2, VaultGemma) that torch's scaled_dot_product_attention does not
# support: transformers' sdpa silently ignores them.
_SOFT_CAP = re.compile(r"^att(n|ention)_\w*soft_?cap")
# Models whose log-probs depend on the length of the batch, by model type.
_INEXACT = {
    "reformer": "its attention hashes tokens into buckets, whose number depends on the length"
}
# Heads that a checkpoint can have instead of one over the vocabulary.
_KINDS = (
    (r"MaskedLM|PreTraining", "a masked language model"),
    (r"Classification|Reward|Regression|Score", "a classifier or reward model"),
    (r"ConditionalGeneration|Seq2Seq", "a model with inputs other than text tokens"),
    (r"Embedding|Retrieval|Encoder", "an embedding model"),
    (r"Model$", "a model without a head"),
)


def load_causal_lm(
    folder: Path,
    dtype: torch.dtype,
    *,
    trusted: bool = False,
    eager: bool = False,
    **more: Any,
) -> Any:
    """Load the checkpoint in `folder` as a transformers model, with an exact attention kernel.

    Args:
        folder: the checkpoint.
        dtype: of the weights.
        trusted: whether Python code from the folder may run.
        eager: use transformers' eager attention, which follows the definition step by step.
        more: further arguments of `from_pretrained`.

    Raises:
        InputError: it is not a causal language model, its weights do not fit its architecture, or
            it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    config, _ = require_causal_lm(folder, trusted=trusted)
    attention = "eager" if eager else attention_for(config)
    with loading("model", folder):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, trust_remote_code=trusted, **more
        )
    if _sees_what_follows(model):
        raise InputError(
            f"{folder}: not a causal language model: in {type(model).__name__}, the output for a "
            "token depends on the tokens after it, or on how many there are. reflogp needs a model "
            "that reads from left to right."
        )
    by_sequence(model)
    return model


def require_causal_lm(folder: Path, *, trusted: bool = False) -> tuple[Any, type[Any]]:
    """Refuse a checkpoint that is not a complete causal language model.

    This reads only the names and shapes of the weights.

    Args:
        folder: the checkpoint.
        trusted: whether Python code from the folder may run.

    Returns:
        The configuration, and the transformers class that the checkpoint loads into.

    Raises:
        InputError: see `load_causal_lm`.
    """
    from transformers import AutoModelForCausalLM

    config = causal_config(folder, trusted=trusted)
    with loading("model", folder), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    require_weights(folder, config, type(model))
    return config, type(model)


def causal_config(folder: Path, *, trusted: bool = False) -> Any:
    """Load the configuration of a causal language model, and refuse every other kind of model.

    Args:
        folder: the checkpoint. Its weights are not read.
        trusted: whether Python code from the folder may run.

    Raises:
        InputError: it cannot be loaded, or is that of another kind of model.
    """
    config = load_config(folder, trusted=trusted)
    if other := _other_kind(folder, config):
        raise InputError(
            f"{folder}: {other}. reflogp needs a causal language model, which predicts the next "
            "token."
        )
    if reason := _INEXACT.get(config.model_type):
        raise InputError(f"{folder}: a {config.model_type} cannot be scored exactly: {reason}.")
    return config


def attention_for(config: Any) -> str | None:
    """The attention implementation a model needs for exact results; None for transformers' choice.

    transformers picks sdpa unless the model refuses it. Models with attention sinks refuse it;
    models that cap their attention scores do not, although sdpa ignores the cap.
    """
    settings = config.get_text_config().to_dict()
    capped = any(value and _SOFT_CAP.match(name) for name, value in settings.items())
    return "eager" if capped else None


def is_mixture(config: Any) -> bool:
    """Whether a model is a mixture of experts, where rounding can change which experts run."""
    settings = config.get_text_config().to_dict()
    return any(isinstance(n := settings.get(name), int) and n > 1 for name in _EXPERTS)


def _other_kind(folder: Path, config: Any) -> str | None:
    """What the checkpoint is instead; None if it is a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = list(config.architectures or [])
    if (folder / "modules.json").is_file():
        return "an embedding model (sentence-transformers' modules.json)"
    if getattr(config, "is_encoder_decoder", False):
        return f"an encoder-decoder ({', '.join(names) or config.model_type})"
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
            return None  # its own code has one
        return f"{_described(names)}{config.model_type}, for which transformers has no causal head"
    if not names or any(name in known or _CAUSAL.search(name) for name in names):
        return None
    return f"{_described(names)}config.json names {', '.join(names)}"


def _described(names: list[str]) -> str:
    kinds = (kind for pattern, kind in _KINDS for name in names if re.search(pattern, name))
    return f"{next(kinds, 'another kind of model')}: "


@torch.inference_mode()
def _sees_what_follows(model: nn.Module) -> bool:
    """Whether the logits of the first half of a sequence depend on the second half.

    Encoders such as BERT load as causal language models too, but read in both directions.
    ProphetNet's positions depend on the length of the sequence.
    """
    settings: Any = model.config
    if getattr(settings, "quantization_config", None) is not None:
        return False  # the activations of all tokens can share one scale
    device = next(model.parameters()).device
    ids = torch.arange(1, 13, device=device) * 37 % settings.get_text_config().vocab_size
    tried = ids[:8], torch.cat([ids[:4], ids[8:]]), ids[:4]
    training = model.training
    model.eval()
    try:
        one, other, alone = (
            model(input_ids=row[None], use_cache=False).logits[0, :4] for row in tried
        )
    except CANNOT_RUN:  # on this machine, or without preparation; scoring reports it
        return False
    finally:
        model.train(training)
    scale = (one - one.mean()).abs().max()
    if is_mixture(settings):
        return bool((one - other).abs().max() > _ROUNDING_TOGETHER * scale)
    allowed = _ROUNDING.get(one.dtype, _ROUNDING_REDUCED)
    return bool(
        (one - other).abs().max() > allowed * scale
        or (one - alone).abs().max() > _ROUNDING_OTHER_LENGTH * scale
    )
