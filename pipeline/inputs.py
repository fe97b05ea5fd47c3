"""Finds what stage one reads, and examines the folder that it would write."""

from pathlib import Path

from reflogp.data_schemas.files.ownership import require_apart
from reflogp.data_schemas.files.storage import reach
from reflogp.pipeline.fingerprint import at_commit
from reflogp.pipeline.resolve import resolve_checkpoint
from reflogp.stages.cache.folder import Standing, stand
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.read.sources import is_hub_id, source_files


def find_inputs(
    config: PrecomputeConfig, *, weights: bool = True
) -> tuple[PrecomputeConfig, Checkpoint, Standing]:
    """The configuration at a commit of the data, the reference, and what is in the cache's folder.

    Args:
        config: as the user gave it.
        weights: whether a reference on the Hub is downloaded with its weights.

    Raises:
        InputError: the reference or the data does not exist; or the folder is an input, or holds
            something that must not be replaced.
    """
    reach(config.cache)
    reference = reference_of(config, weights=weights)
    config = at_commit(config)
    read = {
        "reference": reference.folder,
        "adapter": reference.adapter,
        "data": local_data(config),
    }
    require_apart("--cache", config.cache, read | _linked_data(config))
    return config, reference, stand(config.cache, "--cache", overwrite=config.overwrite)


def reference_of(config: PrecomputeConfig, *, weights: bool = True) -> Checkpoint:
    """The model that scores, in the dtype that was asked for."""
    return resolve_checkpoint(
        config.reference, config.adapter, "reference", config.revision, dtype=config.dtype,
        weights=weights, trusted=config.trust_remote_code,
    )  # fmt: skip


def local_data(config: PrecomputeConfig) -> Path | None:
    """The file or folder of the preferences; None if they are on the Hub."""
    return None if is_hub_id(config.data) else Path(config.data)


def _linked_data(config: PrecomputeConfig) -> dict[str, Path]:
    """The files behind links in a folder of preferences."""
    if not Path(config.data).is_dir():
        return {}
    files = source_files(config.data, config.split)
    return {f"data file {path.name}": path for path in files if path.is_symlink()}
