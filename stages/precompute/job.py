"""Stage one with everything resolved: what runs, on what, and where it writes."""

from dataclasses import dataclass
from pathlib import Path

from reflogp.data_schemas.manifest import Dtype, Inputs
from reflogp.stages.cache.folder import claim, short
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import Choice


@dataclass(frozen=True)
class Job:
    """What a user's configuration comes to.

    Attributes:
        config: what the user set.
        reference: folder of the checkpoint.
        dtype: of weights and forward, never `auto`.
        engine: the engine that runs.
        inputs: digests of all that the log-probs depend on.
        adapter: folder of the LoRA adapter on top of the reference, or None.
    """

    config: PrecomputeConfig
    reference: Path
    dtype: Dtype
    engine: Choice
    inputs: Inputs
    adapter: Path | None = None

    def path(self, stem: str, ending: str = "") -> Path:
        """A path in the cache that no earlier job with other inputs has used."""
        return self.config.cache / f"{stem}-{short(self.inputs)}{ending}"

    def shard_path(self, number: int) -> Path:
        """Where the finished shard `number` of the plan stands."""
        return self.path("shard", f"-{number:05d}.parquet")

    def claim(self) -> None:
        """Mark the cache's folder before the first file of it."""
        claim(self.config.cache, short(self.inputs), overwrite=self.config.overwrite)
