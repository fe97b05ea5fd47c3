"""A process somewhere in the cluster that holds one engine, and scores shard after shard."""

import os

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.location import is_local
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.planned_shards import PlannedShard
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.precompute.score.ray.cluster import require_here
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.precompute.score.worker import Done, Worker


class ShardActor:
    """One engine. It writes its shards itself, straight to the cache's file system."""

    def __init__(self, job: Job, known: ScoredRows) -> None:
        self._job = job
        self._worker = Worker(job, known)

    def check(self) -> str:
        """The node's name, if it can do the work; nothing heavy is loaded yet.

        Raises:
            InputError: checkpoint or cache are not there, or the engine is another one.
        """
        job = self._job
        require_here(job.reference, job.adapter)
        if is_local(job.config.cache):
            require_here(job.path("plan"))
        here, node = choose(job.config.engine, job.reference), os.uname().nodename
        if (here.name, here.version) != (job.engine.name, job.engine.version):
            raise InputError(
                f"the node {node} has {here.name} {here.version} ({here.why}), and this cache is "
                f"made with {job.engine.name} {job.engine.version}. Install the same on all nodes."
            )
        return node

    def score(self, planned: PlannedShard) -> Done:
        """Score a shard and write it.

        Raises:
            ReflogpError: the engine does not start or fails, or a file cannot be read or written.
        """
        try:
            return self._worker.score(planned, _nobody, _nobody)
        except (ReflogpError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - it is told of in the driver
            # plain text crosses to the driver; a library's own error need not survive the way
            raise ReflogpError(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """End the engine."""
        self._worker.close()


def _nobody(_: float | str) -> None:
    """The driver tells of progress, shard by shard."""
