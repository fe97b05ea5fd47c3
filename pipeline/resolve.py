"""A model's name -> its folders and dtype. Only a name that is not a folder goes to the Hub."""

import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Dtype, Manifest
from reflogp.stages.model.adapter import CONFIG as ADAPTER_CONFIG
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import hub_commit, loading, read_json
from reflogp.stages.precompute.config import DtypeOption

_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bfloat16", "float16": "float16", "float32": "float32",
    "BF16": "bfloat16", "F16": "float16", "F32": "float32",
}  # fmt: skip
# what is downloaded from the Hub
_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
_WEIGHTS = ("*.safetensors",)
_PICKLED = ("pytorch_model*.bin",)  # only where there are no others
_CODE = ("*.py",)
_HUB_ID = re.compile(r"(?![.~])[^/]+(/(?!\.\.?(/|$))[^/]+)+")


def resolve_checkpoint(
    name: str,
    adapter: str | None,
    option: str,
    revision: str | None = None,
    adapter_revision: str | None = None,
    *,
    dtype: DtypeOption = "auto",
    weights: bool = True,
    trusted: bool = False,
) -> Checkpoint:
    """Find a checkpoint and the LoRA adapter on top of it, if there is one.

    Args:
        name: folder or Hub id of a checkpoint, or of an adapter whose configuration names one.
        adapter: folder or Hub id of the adapter; None if there is none, or if `name` is one.
        option: the option that gave `name`, for messages.
        revision: branch, tag or commit of `name` on the Hub; default: main.
        adapter_revision: the same for `adapter`.
        dtype: dtype to run it in; `auto` is the dtype that it was saved in.
        weights: whether a checkpoint on the Hub is downloaded with its weights.
        trusted: whether Python code from its folder may run; only then is it downloaded.

    Raises:
        InputError: there is no such checkpoint or adapter, or the adapter is not LoRA.
    """
    download = partial(_folder, weights=weights, code=trusted)
    folder = download(name, option, revision)
    if adapter is None and not (folder / ADAPTER_CONFIG).is_file():
        return Checkpoint(folder, None, _dtype(dtype, folder), trusted)
    if adapter is None:
        config = _lora_config(folder)
        top, base = folder, str(config.get("base_model_name_or_path") or "")
        at = None if Path(base).exists() else config.get("revision")
        try:
            folder = download(base, f"{option} {name}: its base model:", at)
        except InputError as error:
            raise InputError(
                f"--{option} {name}: an adapter whose base model ({base or 'not named'}) is not "
                f"there. Give the base model as --{option}, and {name} as --adapter."
            ) from error
    else:
        top = download(adapter, "adapter", adapter_revision)
        _lora_config(top)
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder} is an adapter itself. Give the checkpoint that both were trained on, and "
            "one adapter. PEFT can merge the other into the checkpoint (merge_and_unload)."
        )
    return Checkpoint(folder, top, _dtype(dtype, folder), trusted)


def resolve_start(
    model: str | None,
    adapter: str | None,
    manifest: Manifest,
    option: str,
    *,
    trusted: bool = False,
) -> Checkpoint:
    """The given model and adapter, in the cache's dtype; by default the cache's reference.

    The reference is looked up where it was read from; on another machine, by its name and at the
    commit that was scored. That its code was trusted then says nothing of now: anyone can write a
    manifest.

    Raises:
        InputError: see `resolve_checkpoint`; or the reference needs code that is not trusted.
    """
    resolve = partial(
        resolve_checkpoint, option=option, dtype=manifest.engine.dtype, trusted=trusted
    )
    if model is not None:
        return resolve(model, adapter)
    reference = manifest.reference
    if reference.trust_remote_code and not trusted:
        raise InputError(
            f"{reference.path}: the cache was made with Python code from this checkpoint "
            "(--trust-remote-code). Give --trust-remote-code if you trust it, too."
        )
    places = [reference.path, reference.adapter_path]
    if all(Path(place).is_dir() for place in places if place is not None):
        return resolve(reference.path, adapter or reference.adapter_path)
    commits = [
        None if name is None or Path(name).exists() else commit
        for name, commit in (
            (reference.name, reference.commit), (reference.adapter, reference.adapter_commit)
        )
    ]  # fmt: skip
    if adapter is not None:
        commits[1] = None
    return resolve(
        reference.name,
        adapter or reference.adapter,
        revision=commits[0],
        adapter_revision=commits[1],
    )


def described(manifest: Manifest) -> str:
    """The reference as on the command line."""
    reference = manifest.reference
    return reference.name + (f" --adapter {reference.adapter}" if reference.adapter else "")


def _lora_config(adapter: Path) -> dict[str, Any]:
    config = read_json(adapter / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type", f"without {ADAPTER_CONFIG}")
        raise InputError(f"{adapter}: an adapter {kind}; only LoRA adapters of PEFT can be used.")
    return config


def _folder(name: str, option: str, revision: str | None, *, weights: bool, code: bool) -> Path:
    """The folder of a checkpoint or adapter, given as a folder or as a Hub id.

    A Hub id is owner/name, or owner/name/folder for a folder of the repository.
    """
    if not name.strip():
        raise InputError(f"--{option}: the path is empty. Give a folder or a Hub id (owner/name).")
    folder = Path(name)
    if folder.exists() and revision is not None:
        raise InputError(
            f"--revision {revision}: --{option} {name} is a local folder, which has no revisions. "
            "Leave one of them out."
        )
    if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return folder.resolve()
    if folder.exists():
        raise InputError(
            f"--{option} {name}: not a checkpoint folder: it has no config.json. Check the path."
        )
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"--{option} {name}: no such folder, and not a Hub id (owner/name).")
    from huggingface_hub import snapshot_download

    owner, repository, *inside = name.split("/")
    where = "".join(f"{part}/" for part in inside)

    def fetch(revision: str | None, *patterns: str) -> Path:
        wanted = [where + pattern for pattern in patterns]
        return Path(
            snapshot_download(f"{owner}/{repository}", revision=revision, allow_patterns=wanted)
        )

    try:
        root = fetch(revision, *_FILES, *_WEIGHTS * weights, *_CODE * code)
        found = root / where
        if weights and not any(found.glob("*.safetensors")):
            fetch(hub_commit(root) or revision, *_PICKLED)
    except Exception as error:
        raise not_on_hub(f"--{option} {name}: no such folder", "model", revision, error) from error
    if not found.is_dir():
        raise InputError(
            f"--{option} {name}: the Hub's {owner}/{repository} has no folder {where}."
        )
    return found


def not_on_hub(where: str, kind: str, revision: str | None, error: Exception) -> InputError:
    """The error for a name that is neither here, as `where` says, nor on the Hub."""
    at = "" if revision is None else f" at the revision {revision}"
    return InputError(
        f"{where}, and the Hub gave no {kind} with that name{at} ({type(error).__name__}). Check "
        "the name, the network and your login."
    )


def checkpoint_dtype(folder: Path) -> Dtype:
    """The dtype of a checkpoint, according to its config, or else that of most of its weights.

    For a quantized checkpoint, only weights that are not quantized count, mostly the embeddings.

    Raises:
        InputError: the config or the weights cannot be read.
    """
    config = read_json(folder / "config.json")
    declared = config.get("dtype") or config.get("torch_dtype")
    if declared is not None:
        return _DTYPES.get(str(declared).removeprefix("torch."), "float32")
    elements: Counter[Dtype] = Counter()
    for path in folder.glob("*.safetensors"):
        with loading("weights", path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                weight = file.get_slice(name)
                if weight.get_dtype() in _DTYPES:
                    elements[_DTYPES[weight.get_dtype()]] += math.prod(weight.get_shape())
    if not elements and any(folder.glob("*.bin")):
        from reflogp.stages.model.stored_weights import stored_weights  # imports torch

        for weight in stored_weights(folder).values():
            stored = str(weight.dtype).removeprefix("torch.")
            if stored in _DTYPES:
                elements[_DTYPES[stored]] += weight.numel()
    return elements.most_common(1)[0][0] if elements else "float32"


def _dtype(dtype: DtypeOption, folder: Path) -> Dtype:
    return checkpoint_dtype(folder) if dtype == "auto" else dtype
