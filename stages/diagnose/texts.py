"""Token ids -> text for people, with the reference's own tokenizer where that is still there."""

from collections.abc import Callable
from pathlib import Path

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.model.checkpoint import Checkpoint

Decoder = Callable[[list[int]], str]

_FIRST, _LAST = 150, 50  # tokens that are shown of a longer text


def decoder(manifest: Manifest) -> Decoder | None:
    """What decodes this cache's ids; None where the reference, or a fast tokenizer, is not here."""
    reference = manifest.reference
    adapter = None if reference.adapter_path is None else Path(reference.adapter_path)
    checkpoint = Checkpoint(Path(reference.path), adapter, manifest.engine.dtype)
    path = checkpoint.tokenizer / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - whatever the library makes of it, texts are an extra
        return None

    def decode(ids: list[int]) -> str:
        if len(ids) <= _FIRST + _LAST:
            return str(tokenizer.decode(ids, skip_special_tokens=False))
        ends = ids[:_FIRST], ids[-_LAST:]
        return " […] ".join(tokenizer.decode(part, skip_special_tokens=False) for part in ends)

    return decode
