"""Stage one where Ray's own autoscaler starts the nodes for its actors, and ends them.

The nodes are raylets on this machine, by Ray's fake provider, which also starts some that nobody
waits for; all else is what a cloud would run. The head has no core, so all work is on such nodes.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.faults import processes
from tests.faults.conftest import THOROUGH, Make, require_equal

ray = pytest.importorskip("ray")
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(not THOROUGH, reason="takes minutes: make faults")


def scaling(address: str) -> dict[str, object]:
    """No worker to begin with, and two nodes of one core at the most; idle for six seconds."""
    provider = {
        "type": "fake_multinode", "gcs_address": address, "head_node_id": "f" * 51 + "00000",
        # without these it neither knows a node as idle nor gets past the first that it starts
        "use_node_id_as_ip": True, "disable_node_updaters": True,
    }  # fmt: skip
    types = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    kinds = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray")
    unused: dict[str, object] = {f"{kind}_commands": [] for kind in (*kinds, "worker_start_ray")}
    return unused | {
        "cluster_name": "fake", "provider": provider, "max_workers": 2, "idle_timeout_minutes": 0.1,
        "available_node_types": types, "head_node_type": "head", "auth": {}, "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False,
    }  # fmt: skip


@pytest.fixture
def cluster(
    ray_alone: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a head node with an autoscaler, and its process."""
    for name, value in {
        "RAY_AUTH_MODE": "token", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with closing(socket.socket()) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # not tmp_path, which is too long for the name of a socket
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        settings = Path(folder) / "scaling.json"
        settings.write_text(json.dumps(scaling(address)))
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0",
            "--include-dashboard=false", f"--port={port}", f"--temp-dir={folder}",
            f"--autoscaling-config={settings}",
        ]  # fmt: skip
        head = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not nodes(head):
                assert head.poll() is None
                time.sleep(0.1)
            yield address, head
        finally:
            for process in [*head.children(recursive=True), head]:
                process.kill()
            head.wait()


def nodes(head: psutil.Process) -> set[int]:
    """Each node of the cluster is a raylet; what a raylet starts has its name for a moment."""
    raylets = {
        p.pid: p.ppid()
        for p in head.children(recursive=True)
        if p.name() == "raylet" and p.status() != "zombie"
    }
    return {pid for pid, parent in raylets.items() if parent not in raylets}


def test_all_work_is_done_on_nodes_that_come_and_go(
    cluster: tuple[str, psutil.Process], configured: Make, tmp_path: Path
):
    single, (address, head) = configured(tmp_path / "single"), cluster
    processes.run(processes.precompute(single))
    run = subprocess.Popen([
        str(BIN / "reflogp"), "precompute", f"--reference={single.reference}",
        f"--data={single.data}", f"--cache={tmp_path / 'cache'}", "--engine=transformers",
        "--max-length=192", "--shard-tokens=3000", "--verify-sample=0", "--backend=ray",
        f"--address={address}", "--actors=1-2",
    ])  # fmt: skip
    seen = [nodes(head)]
    try:
        while run.poll() is None or len(seen[-1]) > 1:
            assert len(seen) < 1200, "idle nodes did not go"
            time.sleep(0.2)
            seen.append(nodes(head))
    finally:
        run.kill()
    assert run.wait() == 0
    assert max(map(len, seen)) > 1
    require_equal(tmp_path / "cache", single.cache)
