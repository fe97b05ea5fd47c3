"""A job of stage one, with all names and defaults resolved."""

from dataclasses import dataclass
from pathlib import Path

from reflogp.data_schemas.manifest import Inputs
from reflogp.stages.cache.folder import claim, short
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import Choice


@dataclass(frozen=True)
class Job:
    """A user's configuration with everything resolved.

    Attributes:
        config: the user's configuration.
        reference: the model that scores.
        engine: the engine that runs.
        inputs: digests of everything that the log-probs depend on.
    """

    config: PrecomputeConfig
    reference: Checkpoint
    engine: Choice
    inputs: Inputs

    def path(self, stem: str, ending: str = "") -> Path:
        """Return a path in the cache that jobs with other inputs do not use."""
        return self.config.cache / f"{stem}-{short(self.inputs)}{ending}"

    def shard_path(self, number: int) -> Path:
        """Return the path of the finished shard `number` of the plan."""
        return self.path("shard", f"-{number:05d}.parquet")

    def claim(self) -> None:
        """Mark the cache's folder before its first file is written."""
        claim(self.config.cache, short(self.inputs), overwrite=self.config.overwrite)
