"""Reads everything in a checkpoint except the weights. Any library error becomes one message."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.shard_content import Limits, limits_of

_LONGEST = 500
_LFS = b"version https://git-lfs"
_FETCHED = ("*.json", "*.model", "*.txt", "*.safetensors", "*.bin")
_NOISE = re.compile(r"^(Traceback \(most recent|File \"|\^+$|[-=]{3,}$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Turn any failure to load `what` (weights, tokenizer, ...) from `path` into an InputError.

    Raises:
        InputError: in place of whatever the library raises.
    """
    try:
        yield
    except Exception as error:
        if pointer := _pointer(path):
            raise InputError(
                f"{pointer}: a pointer of Git LFS in place of the file. Run `git lfs pull` in its "
                "folder."
            ) from error
        if isinstance(error, InputError):
            raise
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path}: the {what} needs Python code from its folder (auto_map). Read that code, "
                "and give --trust-remote-code if you trust it; or use a checkpoint that "
                "transformers has the code for."
            ) from error
        raise InputError(
            f"{path}: the {what} cannot be loaded: {cause(error)}. Check that the checkpoint is "
            "complete."
        ) from error


def _pointer(path: Path) -> Path | None:
    """A file at or in `path` that Git LFS has not fetched."""
    inside = (file for pattern in _FETCHED for file in sorted(path.glob(pattern)))
    for file in (path,) if path.is_file() else inside:
        with file.open("rb") as opened:
            if opened.read(len(_LFS)) == _LFS:
                return file
    return None


def cause(error: BaseException) -> str:
    """The message of an exception and its causes, in one line.

    Libraries often say what they were doing in the first line or the outer exception, and what went
    wrong in the second line or the inner one. A long message is cut in the middle.
    """
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        text = _in_one_line(str(seen)) or type(seen).__name__
        if not any(text in earlier for earlier in texts):
            texts.append(text)
        seen = seen.__cause__
    return _bounded(": ".join(text.rstrip(".:") for text in texts))


def _in_one_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not _NOISE.search(line))


def _bounded(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST * 2 // 3]} [...] {text[-_LONGEST // 3 :]}"


def load_config(folder: Path, *, trusted: bool = False) -> Any:
    """Load the transformers configuration of a checkpoint.

    Args:
        folder: the checkpoint.
        trusted: whether Python code from the folder may run.

    Raises:
        InputError: it cannot be loaded, or needs code that may not run.
    """
    # imported here because transformers is slow to import, and an up-to-date run does not need it
    from transformers import AutoConfig

    with loading("config.json", folder):
        if trusted:
            _require_own_code(folder / "config.json")
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)


def load_saved_tokenizer(folder: Path, *, trusted: bool = False) -> Any:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: the checkpoint.
        trusted: whether Python code from the folder may run.

    Raises:
        InputError: it cannot be loaded, or needs code that may not run.
    """
    from transformers import AutoTokenizer

    with loading("tokenizer", folder):
        if trusted:
            _require_own_code(folder / "tokenizer_config.json")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)


def _require_own_code(settings: Path) -> None:
    """Refuse code of another repository, which would be downloaded as it is at that moment."""
    for code in (read_json(settings).get("auto_map") or {}).values():
        if "--" in str(code):
            raise InputError(
                f"{settings}: auto_map names code of another repository: {code}. Copy that code "
                "into the folder, and leave out the part of the name up to --."
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint. A missing file gives an empty dict.

    Raises:
        InputError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("not an object with named fields")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON: {error}. Check that the checkpoint is complete."
        ) from error
    return content


def quantization(checkpoint: Path) -> str | None:
    """How the weights of a checkpoint are quantized (fp8, awq, gptq, ...); None if they are not."""
    config = read_json(checkpoint / "config.json")
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"


def untrainable(kind: str) -> str:
    """What a quantized reference of this kind is good for, in one line."""
    return (
        f"the reference is quantized ({kind}): it can be scored, but not trained. Train the "
        "checkpoint that it was made from: --policy ORIGINAL --allow-mismatch"
    )


def hub_commit(folder: Path | None) -> str | None:
    """The commit of a folder in a snapshot of the Hub's cache; None for any other folder."""
    parts = () if folder is None else folder.parts
    below = (name for above, name in pairwise(parts) if above == "snapshots")
    return next((name for name in below if _COMMIT.fullmatch(name)), None)


def vocabulary(checkpoint: Path) -> int | None:
    """The vocabulary size, which every token id is below; None if config.json does not say."""
    return _size(checkpoint, ("vocab_size",))


def limits_under(manifest: Manifest, checkpoint: Path) -> Limits:
    """The limits of a cache's rows, narrowed to what this model can read."""
    limits = limits_of(manifest)
    known = vocabulary(checkpoint), _size(checkpoint, ("max_position_embeddings", "n_positions"))
    return replace(
        limits,
        vocabulary=min(limits.vocabulary, known[0] or limits.vocabulary),
        max_length=min(limits.max_length, known[1] or limits.max_length),
    )


def _size(checkpoint: Path, names: Sequence[str]) -> int | None:
    """A positive integer from config.json, from its text_config first."""
    config = read_json(checkpoint / "config.json")
    text = config.get("text_config")
    places = [text, config] if isinstance(text, dict) else [config]
    found = (place.get(name) for place in places for name in names)
    return next((size for size in found if type(size) is int and size > 0), None)


def architecture(folder: Path) -> str | None:
    """The class that config.json names in `architectures`; None if it names none.

    Raises:
        InputError: config.json is missing, or is not valid JSON.
    """
    with loading("config.json", folder):
        config = json.loads((folder / "config.json").read_bytes())
        return next(iter(config.get("architectures") or []), None)
