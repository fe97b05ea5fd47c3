"""Hashes of everything that log-probs depend on. They prevent repeated scoring and stale caches.

Weights are hashed completely, because the path or date of a checkpoint says nothing if it was
trained further in place. digests.py caches the hashes of unchanged files.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Inputs
from reflogp.pipeline.digests import file_digests
from reflogp.pipeline.resolve import not_on_hub
from reflogp.stages.model.adapter import CONFIG as ADAPTER_CONFIG
from reflogp.stages.model.adapter import WEIGHTS as ADAPTER_WEIGHTS
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import read_json
from reflogp.stages.precompute.config import SCORING_VERSION, PrecomputeConfig
from reflogp.stages.precompute.read.sources import is_hub_id, source_files
from reflogp.stages.precompute.score.engines.choose import Choice

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
              "merges.txt", "added_tokens.json", "special_tokens_map.json")  # fmt: skip
# Written by the library that saved the file last; they change no number.
_VOLATILE = {"transformers_version", "_name_or_path", "use_cache", "architectures"}
_VOLATILE_TOKENIZER = {"chat_template", "is_local", "local_files_only", "name_or_path"}
# Where and how the adapter was saved, and settings of its training.
_VOLATILE_ADAPTER = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout",
                     "peft_version", "revision", "task_type"}  # fmt: skip


def model_inputs(model: Checkpoint) -> dict[str, str]:
    """Digests of a model: weights, adapter, architecture, tokenizer and chat template.

    Raises:
        InputError: a folder has no weights.
    """
    folder, adapter = model.folder, model.adapter
    weights = next((sorted(folder.glob(p)) for p in _WEIGHTS if any(folder.glob(p))), None)
    if not weights:
        raise InputError(
            f"{folder}: the folder has no weights (*.safetensors or *.bin). Check that the "
            "checkpoint is complete."
        )
    spoken = model.tokenizer
    settings = read_json(spoken / "tokenizer_config.json")
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in _VOLATILE}
    code = _code(folder, model)
    named = sorted((spoken / "additional_chat_templates").glob("*.jinja"))
    templates = [*_present(spoken, ("chat_template.jinja",)), *named]
    return {
        "weights": _files(weights),
        "adapter": "none" if adapter is None else _adapter(adapter),
        "architecture": _value([config, _files(code)] if code else config),
        "tokenizer": tokenizer_input(model),
        "chat_template": _value([settings.get("chat_template"), _files(templates)]),
    }


def tokenizer_input(model: Checkpoint) -> str:
    """Digest of a model's tokenizer, including the tokens that end its responses."""
    spoken = model.tokenizer
    settings = read_json(spoken / "tokenizer_config.json")
    special = {k: v for k, v in settings.items() if k not in _VOLATILE_TOKENIZER}
    stops = read_json(model.folder / "generation_config.json").get("eos_token_id")
    code = _code(spoken, model)
    return _value(
        [_files(_present(spoken, _TOKENIZER)), special, stops, *[_files(code)] * bool(code)]
    )


def _code(folder: Path, model: Checkpoint) -> list[Path]:
    """The Python files that can run when `model` is loaded."""
    return sorted(folder.rglob("*.py")) if model.trusted else []


def precompute_inputs(reference: Checkpoint, config: PrecomputeConfig, engine: Choice) -> Inputs:
    """Digests of everything that the result of stage one depends on.

    Raises:
        InputError: the data or the model does not exist.
    """
    return Inputs(
        **model_inputs(reference),
        data=_data(config),
        rules=_value(config.rules()),
        engine=engine_input(config, engine, reference.dtype),
    )


def engine_input(config: PrecomputeConfig, engine: Choice, dtype: str) -> str:
    """Digest of the engine and its settings."""
    return _value([engine.name, engine.version, SCORING_VERSION, dtype, config.engine_settings()])


def at_commit(config: PrecomputeConfig) -> PrecomputeConfig:
    """The configuration with --data-revision resolved to a commit on the Hub.

    Raises:
        InputError: the Hub has no such data set or revision, or the data is not on the Hub.
    """
    name, revision = config.data, config.data_revision
    if not is_hub_id(name):
        for option, value in (("data-revision", revision), ("data-config", config.data_config)):
            if value is not None:
                raise InputError(
                    f"--{option} {value}: --data {name} is not a Hub data set. Leave one of them "
                    "out."
                )
        return config
    from huggingface_hub import HfApi

    try:
        commit = str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        where = f"--data {name}: no such file or folder"
        raise not_on_hub(where, "data set", revision, error) from error
    return config.model_copy(update={"data_revision": commit})


def _data(config: PrecomputeConfig) -> str:
    """Digest of the files; for a Hub data set the commit, which `at_commit` has resolved."""
    if is_hub_id(config.data):
        return str(config.data_revision)
    return _files(source_files(config.data, config.split))


def _adapter(folder: Path) -> str:
    weights = _present(folder, (ADAPTER_WEIGHTS,))
    if not weights:
        raise InputError(
            f"{folder}: the adapter's folder has no {ADAPTER_WEIGHTS}. Save the adapter again with "
            "a current version of PEFT."
        )
    config = read_json(folder / ADAPTER_CONFIG)
    # PEFT saves sets as lists, in an order that varies
    settings = {
        name: sorted(value, key=str) if isinstance(value, list) else value
        for name, value in config.items()
        if name not in _VOLATILE_ADAPTER
    }
    return _value([_files(weights), settings])


def _files(paths: Iterable[Path]) -> str:
    """One digest of the names and contents of `paths`, in this order."""
    files = list(paths)
    whole = hashlib.sha256()
    for path, digest in zip(files, file_digests(files), strict=True):
        whole.update(path.name.encode() + b"\0" + digest)
    return whole.hexdigest()


def _value(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _present(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]
