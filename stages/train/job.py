"""The description of one training run."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.unfinished import unfinished_folder


@dataclass(frozen=True)
class TrainJob:
    """Stage two with everything resolved.

    Attributes:
        config: what the user set.
        policy: what training starts from, in the dtype that the cache was scored in.
        manifest: of the cache.
        fingerprint: SHA-256 of everything that the result depends on.
        eval_manifest: of the cache for evaluation, if it is a separate one.
        own: files that reflogp wrote in the output, which the result replaces.
    """

    config: TrainConfig
    policy: Checkpoint
    manifest: Manifest
    fingerprint: str
    eval_manifest: Manifest | None = None
    own: Collection[str] = ()

    @property
    def folder(self) -> Path:
        """The folder in which the run works until its result is complete."""
        return unfinished_folder(self.config.output, self.fingerprint)
