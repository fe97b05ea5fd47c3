"""Checks that the weights in a checkpoint's files are the ones that its architecture has.

transformers fills missing weights with random numbers and ignores unknown ones. The log-probs are
then those of another model, and a check of the cache with the same loader cannot notice. This
module reads only names and shapes, and passes them through transformers' own loading on the "meta"
device, which handles renamed, fused and tied weights. Nothing is computed, and vLLM does not start.
"""

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from reflogp.data_schemas.errors import InputError
from reflogp.stages.model.loading import cause, loading

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_SINGLE, _SHARDED = ("model.safetensors", "pytorch_model.bin"), ".index.json"
# buffers that older versions of transformers saved; newer ones compute them
_BUFFERS = re.compile(
    r"(inv_freq|masked_bias|position_ids|(attn|attention)\.bias|embed_positions)$"
)
_NAMED = 3
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def require_weights(folder: Path, config: Any, architecture: type[Any]) -> None:
    """Refuse a checkpoint whose weights are not those of its architecture.

    In a quantized checkpoint, a weight counts as missing only if no part of it is stored.

    Args:
        folder: the checkpoint.
        config: its transformers configuration.
        architecture: the transformers class that the checkpoint loads into.

    Raises:
        InputError: weights are missing, unexpected or of another shape. The message names some.
    """
    stored = stored_weights(folder)
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized:
        config = type(config).from_dict(
            {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
        )
    try:
        _, found = architecture.from_pretrained(
            None, config=config, state_dict=dict(stored), output_loading_info=True,
            ignore_mismatched_sizes=True, device_map="meta", trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:
        if quantized:  # transformers cannot fuse packed weights here
            return
        raise InputError(
            f"{folder}: the weights do not fit a {architecture.__name__}: {cause(error)}. Check "
            "that the checkpoint is complete."
        ) from error
    problems = _problems(found, stored, config, quantized=quantized)
    if not quantized:
        problems += _untied(folder, config, architecture, stored)
    if problems:
        raise InputError(
            f"{folder}: the weights are not those of a {architecture.__name__}, which config.json "
            f"names: {'; '.join(problems)}. Get the complete checkpoint, or the config.json that "
            "belongs to these weights."
        )


def _problems(found: Any, stored: dict[str, Tensor], config: Any, *, quantized: bool) -> list[str]:
    missing = sorted(found["missing_keys"])
    unexpected = sorted(
        name
        for name in found["unexpected_keys"]
        if not _BUFFERS.search(name) and not _predicts_further(name, config)
    )
    misshapen = sorted(
        f"{name} (stored as {list(there)}, expected as {list(wanted)})"
        for name, there, wanted in found["mismatched_keys"]
    )
    if quantized:
        modules = {name[: match.start()] for name in stored for match in re.finditer(r"\.", name)}
        missing = [name for name in missing if name.rpartition(".")[0] not in modules]
        unexpected, misshapen = [], []
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return [f"{len(names)} {what}: {_few(names)}" for what, names in parts.items() if names]


def _predicts_further(name: str, config: Any) -> bool:
    """Whether a weight is of the layers after the last, which predict more than the next token."""
    settings = config.get_text_config()
    more = getattr(settings, "num_nextn_predict_layers", 0) or 0
    last = getattr(settings, "num_hidden_layers", 0)
    layer = _LAYER.search(name)
    return layer is not None and last <= int(layer[1]) < last + more


def _untied(
    folder: Path, config: Any, architecture: type[Any], stored: dict[str, Tensor]
) -> list[str]:
    """Weights that config.json ties, and that are stored with different values.

    transformers would load both, and vLLM only the embeddings.
    """
    pairs = getattr(architecture, "_tied_weights_keys", None)
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    if not tied or not isinstance(pairs, dict):
        return []
    both = [pair for pair in pairs.items() if stored.keys() >= set(pair)]
    values = _values(folder, {name for pair in both for name in pair})
    return [
        f"{one} and {other} differ, and config.json ties them (tie_word_embeddings)"
        for one, other in both
        if not torch.equal(values[one], values[other])
    ]


def _values(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The named weights themselves."""
    found: dict[str, Tensor] = {}
    for path in _files(folder) if names else ():
        with loading("weights", path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    found |= {n: file.get_tensor(n) for n in file.keys() if n in names}  # noqa: SIM118
            else:
                whole = torch.load(path, map_location="cpu", weights_only=True)
                found |= {name: whole[name] for name in names & whole.keys()}
    return found


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that transformers would load, by name, as "meta" tensors: shape and dtype only.

    Raises:
        InputError: there are no weights, a file is missing or damaged, or holds more than weights.
    """
    weights: dict[str, Tensor] = {}
    for path in _files(folder):
        with loading("weights", path):
            if path.suffix == ".safetensors":
                weights |= _of_safetensors(path)
            else:
                weights |= _of_pickle(path)
    return weights


def _of_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path}: the file is damaged, or holds more than tensors, which can run code. reflogp "
            "does not read such files. If you trust it, convert the weights to safetensors."
        ) from error
    return found


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype(), torch.float32)
            found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return found


def _files(folder: Path) -> list[Path]:
    """The files that transformers would load: safetensors before pickles, one file before several.

    Raises:
        InputError: there is no such file, or the index lists files that are missing.
    """
    for name in _SINGLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{_SHARDED}"
        if index.is_file():
            with loading("index of the weights", index):
                names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            lost = [name for name in names if not (folder / name).is_file()]
            if lost:
                raise InputError(
                    f"{folder}: {len(lost)} of the {len(names)} weight files in {index.name} are "
                    f"missing: {_few(lost)}. Get the complete checkpoint."
                )
            return [folder / name for name in names]
    raise InputError(
        f"{folder}: no weights that transformers can load. It needs {' or '.join(_SINGLE)}, or an "
        "index of several such files."
    )


def _few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
