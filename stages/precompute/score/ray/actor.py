"""A Ray actor with one engine, which scores shards one by one."""

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
    """One engine. It writes its shards directly to the cache's file system."""

    def __init__(self, job: Job, known: ScoredRows) -> None:
        self._job = job
        self._worker = Worker(job, known)

    def check(self) -> str:
        """Check that the node can do the work, without loading the engine. Returns its name.

        Raises:
            InputError: the node lacks checkpoint or cache, or has a different engine.
        """
        job = self._job
        require_here(job.reference.folder, job.reference.adapter)
        if is_local(job.config.cache):
            require_here(job.path("plan"))
        here, node = choose(job.config.engine, job.reference.folder), os.uname().nodename
        if (here.name, here.version) != (job.engine.name, job.engine.version):
            raise InputError(
                f"the node {node} has {here.name} {here.version} ({here.why}), but this cache is "
                f"made with {job.engine.name} {job.engine.version}. Install the same version on "
                "all nodes."
            )
        return node

    def score(self, planned: PlannedShard) -> Done:
        """Score a shard and write it.

        Raises:
            ReflogpError: the engine does not start or fails, or a file cannot be read or written.
        """
        try:
            (done,) = self._worker.score([planned], _nobody, _nobody)
        except (ReflogpError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - the driver reports it
            # send plain text, since a library's exception may not unpickle in the driver
            raise ReflogpError(f"{type(error).__name__}: {error}") from None
        return done

    def close(self) -> None:
        """Stop the engine."""
        self._worker.close()


def _nobody(_: float | str) -> None:
    """Ignore progress: the driver reports it shard by shard."""
