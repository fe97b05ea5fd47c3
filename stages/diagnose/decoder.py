"""Token ids -> text for people, with the reference's tokenizer if it is still available."""

from collections.abc import Callable
from pathlib import Path

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.model.checkpoint import Checkpoint

Decoder = Callable[[list[int]], str]

_FIRST, _LAST = 150, 50  # tokens shown of a longer text


def decoder(manifest: Manifest) -> Decoder | None:
    """A decoder of the cache's ids; None without the reference or a fast tokenizer."""
    reference = manifest.reference
    adapter = None if reference.adapter_path is None else Path(reference.adapter_path)
    checkpoint = Checkpoint(Path(reference.path), adapter, manifest.engine.dtype)
    path = checkpoint.tokenizer / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - texts are optional, whatever the library raises
        return None

    def decode(ids: list[int]) -> str:
        if len(ids) <= _FIRST + _LAST:
            return str(tokenizer.decode(ids, skip_special_tokens=False))
        ends = ids[:_FIRST], ids[-_LAST:]
        return " […] ".join(tokenizer.decode(part, skip_special_tokens=False) for part in ends)

    return decode
