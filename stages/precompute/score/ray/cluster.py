"""The Ray cluster: joining it, what an actor takes of it, and what only its nodes can tell.

Ray is imported where it is used only: it is an optional extra.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.location import is_local
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import Choice, choose
from reflogp.stages.signals import listen_again

_ASK_SECONDS = 600  # for the first answer of a node, which the cluster may have to start

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Room:
    """What one actor takes of its node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else f"{self.cpus} CPU"

    def options(self) -> dict[str, Any]:
        """The same as options of a Ray actor or task, which is not to be repeated by Ray."""
        # SPREAD: a node that dies takes few actors with it, and what is tried again moves
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}


def connect(config: PrecomputeConfig) -> None:
    """Join the cluster at `config.address`, or RAY_ADDRESS, or one made of this machine.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f'--backend ray: Ray is not there ({error}). pip install "reflogp[ray]", on every node.'
        ) from error
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless asked for
    # vLLM's engine is a child of its actor and must not outlive it, with the GPU's memory
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    try:
        ray.init(
            address=config.address, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        listen_again()  # Ray has put a handler of its own in place
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {config.address or os.environ.get('RAY_ADDRESS', '(this machine)')}: no "
            f"Ray cluster can be joined: {error}. Give the head node as host:6379, or leave "
            "--address out to use this machine."
        ) from error


def room_of_an_actor(config: PrecomputeConfig) -> Room:
    """As many GPUs as a tensor-parallel engine spans; CPUs alone where the cluster has no GPU."""
    import ray

    gpus = config.actor_gpus
    if gpus is None:
        gpus = config.tensor_parallel_size if ray.cluster_resources().get("GPU") else 0
    return Room(config.actor_cpus, gpus)


def prepare(config: PrecomputeConfig, reference: Path) -> tuple[PrecomputeConfig, Choice]:
    """The configuration as all nodes understand it, and the engine that they have.

    The driver may sit on a head node that has no GPU. What runs where the actors run, and how much
    that can do in a minute, one of the other nodes is asked.

    Raises:
        InputError: the cluster cannot be joined, or a node cannot run the engine.
    """
    if is_local(config.cache):  # each node has a working directory of its own
        config = config.model_copy(update={"cache": config.cache.absolute()})
    if _is_here(config):
        return config, choose(config.engine, reference)
    engine, shard_tokens = on_a_node(config, _ask, config, reference)
    return config.model_copy(update={"shard_tokens": shard_tokens}), engine


def on_a_node(config: PrecomputeConfig, call: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `call` gives where the actors run.

    Raises:
        InputError: the cluster cannot be joined, or what the node itself raises.
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
    """Whether the cluster is to be made of this machine."""
    return config.address is None and "RAY_ADDRESS" not in os.environ


def _ask(config: PrecomputeConfig, reference: Path) -> tuple[Choice, int]:
    """On a node: its engine, and the tokens of a shard that suit it."""
    from reflogp.stages.precompute.plan.make_plan import default_shard_tokens

    require_here(reference)
    tokens = config.shard_tokens or default_shard_tokens()
    return choose(config.engine, reference), tokens


def require_here(*folders: Path | None) -> None:
    """Refuse a node that does not see what the driver sees.

    Raises:
        InputError: one of the folders is not on this node.
    """
    gone = [folder for folder in folders if folder is not None and not folder.exists()]
    if gone:
        raise InputError(
            f"{gone[0]} is not there on the node {os.uname().nodename}: checkpoint and cache must "
            "be where all nodes see them under one path (or the cache at a URL, s3://...)."
        )


def plain(error: Exception) -> ReflogpError:
    """What Ray raised in the driver, as one message without a traceback of the node."""
    import ray

    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ReflogpError):
        return cause
    if isinstance(cause, ray.exceptions.GetTimeoutError):
        return ReflogpError(
            f"no node of the Ray cluster answered within {_ASK_SECONDS} s. Look at `ray status`; "
            "an actor that fits nowhere waits for ever (--actor-gpus, --actor-cpus)."
        )
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return ReflogpError(f"{type(cause).__name__}: {said}")
