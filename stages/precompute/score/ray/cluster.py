"""Joins the Ray cluster, sizes its actors, and asks its nodes what only they know.

Ray is an optional extra, so it is imported only where it is used.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.location import is_local
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import Choice, choose, gpus_of_an_engine
from reflogp.stages.signals import listen_again

_ASK_SECONDS = 600  # until a node answers, which the cluster may have to start first

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Room:
    """The resources of one actor."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else f"{self.cpus} CPU"

    def options(self) -> dict[str, Any]:
        """The resources as options of a Ray actor or task."""
        # SPREAD: a node that dies takes few actors with it, and a retry runs on another node
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}


def connect(config: PrecomputeConfig) -> None:
    """Join the cluster at `config.address` or RAY_ADDRESS, or start one on this machine.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"--backend ray: Ray is not installed ({error}). Install it on every node: pip install "
            '"reflogp[ray]".'
        ) from error
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send nothing unless asked to
    # vLLM's engine is a child of its actor and must not outlive it, or it would keep GPU memory
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    try:
        ray.init(
            address=config.address, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        listen_again()  # Ray has installed its own signal handler
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {config.address or os.environ.get('RAY_ADDRESS', '(this machine)')}: "
            f"cannot join a Ray cluster: {error}. Give the head node as host:6379, or leave out "
            "--address to use this machine."
        ) from error


def room_of_an_actor(config: PrecomputeConfig) -> Room:
    """The resources of an actor: the GPUs of one engine, or only CPUs if the cluster has no GPU."""
    import ray

    gpus = config.actor_gpus
    if gpus is None:
        gpus = gpus_of_an_engine(config) if ray.cluster_resources().get("GPU") else 0
    return Room(config.actor_cpus, gpus)


def prepare(config: PrecomputeConfig, reference: Path) -> tuple[PrecomputeConfig, Choice]:
    """The configuration for all nodes, and the engine that they have.

    The driver may run on a head node without a GPU. Another node is therefore asked for its engine,
    and for the number of tokens per shard that suits its speed.

    Raises:
        InputError: the cluster cannot be joined, or a node cannot run the engine.
    """
    if is_local(config.cache):  # each node has its own working directory
        config = config.model_copy(update={"cache": config.cache.absolute()})
    if _is_here(config):
        return config, choose(config.engine, reference)
    engine, shard_tokens = on_a_node(config, _ask, config, reference)
    return config.model_copy(update={"shard_tokens": shard_tokens}), engine


def on_a_node(config: PrecomputeConfig, call: Callable[..., Answer], *arguments: Any) -> Answer:
    """The result of `call` on a node of the cluster.

    Raises:
        InputError: the cluster cannot be joined, or the node raises it.
    """
    if _is_here(config):
        return call(*arguments)
    connect(config)
    import ray

    asked = ray.remote(**room_of_an_actor(config).options())(call)
    try:
        answer: Answer = ray.get(asked.remote(*arguments), timeout=_ASK_SECONDS)
    except ray.exceptions.RayError as error:
        raise plain(error) from error
    return answer


def _is_here(config: PrecomputeConfig) -> bool:
    """Whether the cluster is this machine alone."""
    return config.address is None and "RAY_ADDRESS" not in os.environ


def _ask(config: PrecomputeConfig, reference: Path) -> tuple[Choice, int]:
    """Runs on a node: its engine, and the tokens per shard that suit it."""
    from reflogp.stages.precompute.plan.make_plan import default_shard_tokens

    require_here(reference)
    tokens = config.shard_tokens or default_shard_tokens()
    return choose(config.engine, reference), tokens


def require_here(*folders: Path | None) -> None:
    """Refuse a node that does not have these folders.

    Raises:
        InputError: one of the folders is not on this node.
    """
    gone = [folder for folder in folders if folder is not None and not folder.exists()]
    if gone:
        raise InputError(
            f"{gone[0]} does not exist on the node {os.uname().nodename}: all nodes must see "
            "checkpoint and cache under the same path. The cache can also be at a URL, s3://..."
        )


def plain(error: Exception) -> ReflogpError:
    """An error that Ray raised in the driver, as one message without the node's traceback."""
    import ray

    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ReflogpError):
        return cause
    if isinstance(cause, ray.exceptions.GetTimeoutError):
        return ReflogpError(
            f"no node of the Ray cluster answered within {_ASK_SECONDS} s. Look at `ray status`: "
            "an actor that fits on no node waits forever (--actor-gpus, --actor-cpus)."
        )
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return ReflogpError(f"{type(cause).__name__}: {said}")
