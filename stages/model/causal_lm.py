"""The one way to load a causal language model, for both stages; all else is refused by name."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import load_config, loading
from reflogp.stages.model.stored_weights import require_weights

# Of the largest logit, what may be rounded otherwise with other tokens: next to nothing in dense
# models, since the shapes are the same; more where they change an expert's batch.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
_ROUNDING_REDUCED = 1e-3
_ROUNDING_TOGETHER = 2e-2
CANNOT_RUN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$", re.IGNORECASE)
# Fields of configurations (Gemma 2, VaultGemma) that torch's scaled_dot_product_attention has no
# counterpart for: transformers' sdpa leaves them out without a word.
_SOFT_CAP = re.compile(r"^att(n|ention)_\w*soft_?cap")
# Which heads a checkpoint may have in the place of one over the vocabulary.
_KINDS = (
    (r"MaskedLM|PreTraining", "a masked language model"),
    (r"Classification|Reward|Regression|Score", "a classifier or reward model"),
    (r"ConditionalGeneration|Seq2Seq", "a model with inputs other than text tokens"),
    (r"Embedding|Retrieval|Encoder", "an embedding model"),
    (r"Model$", "a model without a head"),
)


def load_causal_lm(folder: Path, dtype: torch.dtype, *, eager: bool = False, **more: Any) -> Any:
    """The checkpoint in `folder` as a transformers model, with attention that computes all of it.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        eager: whether attention is computed by its definition, matrix product by matrix product.
        more: for `from_pretrained`.

    Raises:
        InputError: it is no causal language model, its weights are not those of its architecture,
            or it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    config, _ = require_causal_lm(folder)
    attention = "eager" if eager else attention_for(config)
    with loading("model", folder):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, trust_remote_code=False, **more
        )
    if _sees_what_follows(model):
        raise InputError(
            f"{folder}: no causal language model: what a {type(model).__name__} gives for a token "
            "depends on the tokens after it. reflogp needs a model that reads from left to right."
        )
    return model


def require_causal_lm(folder: Path) -> tuple[Any, type[Any]]:
    """Refuse what is no whole causal language model; only names and shapes of weights are read.

    Returns:
        The configuration, and the class of transformers that the checkpoint is loaded into.

    Raises:
        InputError: see `load_causal_lm`.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    if other := _other_kind(folder, config):
        raise InputError(
            f"{folder}: {other}. reflogp needs a causal language model, whose log-probs are those "
            "of the next token."
        )
    with loading("model", folder), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    require_weights(folder, config, type(model))
    return config, type(model)


def attention_for(config: Any) -> str | None:
    """The attention that a model needs to be right; None where transformers' choice is.

    transformers takes sdpa for all that do not refuse it; those with sinks do, those that cap
    their scores do not.
    """
    settings = config.get_text_config().to_dict()
    capped = any(value and _SOFT_CAP.match(name) for name, value in settings.items())
    return "eager" if capped else None


def is_mixture(config: Any) -> bool:
    """Whether a model is a mixture of experts, where rounding may change which ones are chosen."""
    settings = config.get_text_config().to_dict()
    return any(isinstance(n := settings.get(name), int) and n > 1 for name in _EXPERTS)


def _other_kind(folder: Path, config: Any) -> str | None:
    """What a checkpoint is, if it is no causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = list(config.architectures or [])
    if (folder / "modules.json").is_file():
        return "an embedding model (sentence-transformers' modules.json)"
    if getattr(config, "is_encoder_decoder", False):
        return f"an encoder-decoder ({', '.join(names) or config.model_type})"
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{_described(names)}{config.model_type}, for which transformers has no causal head"
    if not names or any(name in known or _CAUSAL.search(name) for name in names):
        return None
    return f"{_described(names)}config.json names {', '.join(names)}"


def _described(names: list[str]) -> str:
    kinds = (kind for pattern, kind in _KINDS for name in names if re.search(pattern, name))
    return f"{next(kinds, 'another kind of model')}: "


@torch.inference_mode()
def _sees_what_follows(model: nn.Module) -> bool:
    """Whether the logits of the first half of a sequence change with the second half.

    Encoders of BERT's kind load as causal language models, too, and read both ways.
    """
    settings: Any = model.config
    if getattr(settings, "quantization_config", None) is not None:
        return False  # activations of all tokens may share one scale
    device = next(model.parameters()).device
    ids = torch.arange(1, 13, device=device) * 37 % settings.get_text_config().vocab_size
    pair = ids[:8], torch.cat([ids[:4], ids[8:]])
    training = model.training
    model.eval()
    try:
        one, two = (model(input_ids=row[None], use_cache=False).logits[0, :4] for row in pair)
    except CANNOT_RUN:  # here, or not yet; scoring will say so
        return False
    finally:
        model.train(training)
    allowed = (
        _ROUNDING_TOGETHER if is_mixture(settings) else _ROUNDING.get(one.dtype, _ROUNDING_REDUCED)
    )
    return bool((one - two).abs().max() > allowed * (one - one.mean()).abs().max())
