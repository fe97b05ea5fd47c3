"""Finds the tokenizer that decodes the token ids of a cache."""

from pathlib import Path

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.fingerprint import tokenizer_input
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.decoder import Decoder
from reflogp.stages.progress import Console


def decoder_of(manifest: Manifest, console: Console) -> Decoder | None:
    """The decoder of a cache's token ids.

    Returns:
        None, after a warning, if the reference's tokenizer is no longer where the cache was made
        with it, has changed since, cannot be loaded, or needs code of its own, which a command that
        only reads does not run.
    """
    try:
        return _decoder(manifest)
    except InputError as error:
        console.warn(f"token ids are not shown as text: {error}")
        return None


def _decoder(manifest: Manifest) -> Decoder:
    reference = manifest.reference
    adapter = None if reference.adapter_path is None else Path(reference.adapter_path)
    model = Checkpoint(
        Path(reference.path), adapter, manifest.engine.dtype, reference.trust_remote_code
    )
    if not model.tokenizer.is_dir():
        raise InputError(f"{model.tokenizer}: the folder of the tokenizer is not there.")
    if tokenizer_input(model) != manifest.inputs.tokenizer:
        raise InputError(f"{model.tokenizer}: the tokenizer has changed since the cache was made.")
    with quiet_transformers():
        try:
            return Decoder(model.tokenizer)
        except InputError as error:
            if not model.trusted:
                raise
            raise InputError(
                f"{model.tokenizer}: the tokenizer cannot be loaded without Python code from its "
                "folder, which this command does not run."
            ) from error
