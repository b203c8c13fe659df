"""Real Ray clusters of many processes on this machine, each with ports and a folder of its own, that end with the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # not in its stub

from tests.sweeps import ROOT

HEAD_ID = "f" * 51 + "00000"
"""Ray's fake nodes count up from this one."""
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A head node that answers."""

    address: str
    """host:port of its GCS."""
    dashboard: str
    """http://host:port."""
    folder: Path
    """Its --temp-dir."""
    env: dict[str, str]
    """Environment of a process that may join it."""

    def processes(self, name: str) -> list[psutil.Process]:
        """Its processes, and those of its nodes, with that in their command line."""
        return [one for one in _processes(self.folder) if name in " ".join(one.info["cmdline"])]

    def alive(self) -> set[str]:
        """Ids of the nodes that are there now."""
        found = GcsClient(address=self.address).get_all_node_info(timeout=10)
        return {node_id.hex() for node_id, info in found.items() if info.state == 0}


@contextlib.contextmanager
def ray_head(
    *, num_cpus: int = 2, token: str = "", path: str = "", autoscaling: dict[str, Any] | None = None
) -> Iterator[Head]:
    """Start a head node, with an autoscaler if its limits are given.

    Args:
        num_cpus: Of the head.
        token: What drivers must show; none by default.
        path: Put in front of the PATH that its jobs see.
        autoscaling: Node types by name; see `node_type`.
    """
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # short: Ray makes sockets in it
    gcs, dashboard, client, agent, metrics, monitor = free_ports(6)
    env = _environment(token, path)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"]
    command += [f"--port={gcs}", f"--num-cpus={num_cpus}", "--num-gpus=0", "--node-ip-address=127.0.0.1"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    own = dict(env, AUTOSCALER_METRIC_PORT=str(monitor))
    if autoscaling:
        file = folder / "autoscaling.json"
        file.write_text(json.dumps(autoscaler_config(f"127.0.0.1:{gcs}", autoscaling)), encoding="utf-8")
        command += [f"--autoscaling-config={file}"]
        own |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        own |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    log = (folder / "start.log").open("w", encoding="utf-8")
    process = subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT)
    try:
        head = Head(address=f"127.0.0.1:{gcs}", dashboard=f"http://127.0.0.1:{dashboard}", folder=folder, env=env)
        wait_for(lambda: _answers(dashboard) or process.poll() is not None, 200)
        assert process.poll() is None, (folder / "start.log").read_text()
        wait_for(lambda: token or head.alive(), 200)  # this process shows no token
        yield head
    finally:
        _end(process, folder)
        log.close()


def node_type(*, cpus: int, gpus: int, max_nodes: int, name: str, **labels: str) -> dict[str, Any]:
    """A kind of node that the autoscaler may start."""
    return {
        "resources": {"CPU": cpus, "GPU": gpus},
        "labels": {"ray.io/node-group": name, **labels},  # which a real node takes from its environment
        "min_workers": 0,
        "max_workers": max_nodes,
        "node_config": {},
    }


def autoscaler_config(gcs_address: str, node_types: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` would leave on the head. Ray's wheel lacks the defaults of its fake provider (2.60), so all is said here."""
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": gcs_address,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "disable_node_updaters": True,
    }
    return {
        "cluster_name": "fake",
        "provider": provider,
        "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
        "upscaling_speed": 100,
        "idle_timeout_minutes": 0.05,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        "file_mounts": {},
        **{key: [] for key in (*lists, "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")},
    }


def wait_for(condition: Callable[[], object], limit_s: float) -> None:
    """Look until it is so.

    Raises:
        TimeoutError: It never was.
    """
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(limit_s)
        time.sleep(0.2)


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _environment(token: str, path: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "RAY_AUTH_TOKEN"}}
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    return {
        **kept,
        **auth,
        "PATH": os.pathsep.join(filter(None, (path, str(BIN), os.environ["PATH"]))),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    mine = [*_processes(folder), *_children(process.pid)]
    for one in mine:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(mine, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    return []


def _processes(folder: Path) -> list[psutil.Process]:
    """All that name this cluster's folder in their command line; workers end with their raylet."""
    found = psutil.process_iter(["cmdline"])
    return [
        one
        for one in found
        if any(str(folder) in word for word in one.info["cmdline"] or ()) and one.pid != os.getpid()
    ]
