"""What a Ray cluster's autoscaler may start. Runs on the driver.

Ray's autoscaler keeps its limits to itself: on an open-source cluster the GCS has no `ClusterConfig` (ray 2.60). They stand in
the file that `ray up` put on the head node and that the autoscaler's process there was started with, so that is where they are
read. On Kubernetes they stand in the RayCluster resource, which a driver can't see: no groups are known there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, FileConfigReader

HEAD = "node:__internal_head__"
"""Resource that the head node alone has."""
_CONFIG, _GCS = "--autoscaling-config=", "--gcs-address="


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeGroup:
    """A kind of node that the autoscaler may start."""

    name: str
    """As the cluster's file calls it."""
    resources: tuple[tuple[str, float], ...]
    """What Ray gives out of one: `CPU`, `GPU` and so on."""
    labels: tuple[tuple[str, str], ...]
    """Its labels, as the file has them."""
    max_nodes: int
    """Most of them at the same time, within the limit to all groups together."""


def node_groups() -> tuple[NodeGroup, ...]:
    """What the connected cluster's autoscaler may start beside the head; empty where there is none, or nobody can tell.

    Read once for each cluster: this may be called often.
    """
    return _groups_of(ray.get_runtime_context().gcs_address)


@functools.cache
def _groups_of(gcs_address: str) -> tuple[NodeGroup, ...]:
    if _is_on_head():
        return read_groups(gcs_address)
    look = ray.remote(read_groups).options(num_cpus=0, resources={HEAD: 0.001})
    groups: tuple[NodeGroup, ...] = ray.get(look.remote(gcs_address))
    return groups


def _is_on_head() -> bool:
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and HEAD in node["Resources"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def read_groups(gcs_address: str) -> tuple[NodeGroup, ...]:
    """Node groups of the autoscaler that runs on this machine for that cluster."""
    for command in _commands():
        file = _value(command, _CONFIG)
        if file and _value(command, _GCS) == gcs_address:
            return groups_in(
                FileConfigReader(str(Path(file).expanduser()), skip_content_hash=True).get_cached_autoscaling_config()
            )
    return ()


def groups_in(config: AutoscalingConfig) -> tuple[NodeGroup, ...]:
    """Node groups that an autoscaler's configuration allows, the head's left out."""
    head, most = config.get_head_node_type(), config.get_max_num_worker_nodes()
    kinds = [
        kind
        for kind in (config.get_node_type_configs() or {}).values()
        if kind.name != head and kind.max_worker_nodes > 0
    ]
    return tuple(
        NodeGroup(
            name=kind.name,
            resources=tuple((name, float(amount)) for name, amount in kind.resources.items()),
            labels=tuple(kind.labels.items()),
            max_nodes=min(kind.max_worker_nodes, most if most is not None else kind.max_worker_nodes),
        )
        for kind in kinds
    )


def _commands() -> Iterator[list[str]]:
    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []


def _value(command: list[str], option: str) -> str | None:
    return next((word.removeprefix(option) for word in command if word.startswith(option)), None)
