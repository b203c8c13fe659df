"""What Ray says of its nodes, and what it is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.backends import ray_placement
from tuner.backends.ray_autoscaler import NodeGroup
from tuner.backends.ray_placement import GROUP_LABEL, REQUEST, placement_group, ray_cluster
from tuner.placing import CARD_LABEL, TYPE_LABEL, Node, Request


def ray_node(labels: dict[str, str] | None = None, *, is_alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes()` tells it."""
    resources = {"CPU": 8.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    return {"Alive": is_alive, "Resources": resources, "Labels": {"ray.io/node-id": "7", **(labels or {})}}


def l4_group(max_nodes: int, *resources: tuple[str, float], **labels: str) -> NodeGroup:
    given = (("CPU", 8.0), ("GPU", 1.0), *resources)
    return NodeGroup(name="l4", resources=given, labels=tuple(labels.items()), max_nodes=max_nodes)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray tells; to be filled."""
    told: dict[str, Any] = {"nodes": [], "groups": ()}
    monkeypatch.setattr("ray.nodes", lambda: told["nodes"])
    monkeypatch.setattr(ray_placement, "node_groups", lambda: told["groups"])
    return told


def test_nodes_that_are_gone_do_not_count_and_only_labels_of_the_card_are_kept(told: dict[str, Any]) -> None:
    told["nodes"] = [ray_node({TYPE_LABEL: "L4", "team": "a"}), ray_node(is_alive=False)]

    cluster = ray_cluster()

    assert cluster.nodes == (Node(cpus=8, gpus=1, labels=((TYPE_LABEL, "L4"),)),)
    assert not cluster.is_open


def test_of_what_the_autoscaler_may_start_what_it_has_started_is_taken_off(told: dict[str, Any]) -> None:
    told["nodes"] = [ray_node({GROUP_LABEL: "l4"}), ray_node({GROUP_LABEL: "l4"}), ray_node({GROUP_LABEL: "head"})]
    told["groups"] = (l4_group(5, **{CARD_LABEL: "L4-24GB"}),)

    *here, to_come = ray_cluster().nodes

    assert len(here) == 3
    assert to_come == Node(cpus=8, gpus=1, labels=((CARD_LABEL, "L4-24GB"),), count=3, is_alive=False)
    told["groups"] = (l4_group(2),)
    assert all(node.is_alive for node in ray_cluster().nodes)


def test_a_card_that_a_node_type_names_as_a_resource_is_known_before_the_node_comes(told: dict[str, Any]) -> None:
    told["groups"] = (l4_group(1, ("accelerator_type:L4", 1.0)),)

    [to_come] = ray_cluster().nodes

    assert to_come.labels == ((TYPE_LABEL, "L4"),)
    assert to_come.card is not None


def test_nodes_of_a_group_that_nobody_knows_the_limits_of_leave_the_cluster_open(told: dict[str, Any]) -> None:
    told["nodes"] = [ray_node({GROUP_LABEL: "workers"})]

    assert ray_cluster().is_open


def test_a_worker_goes_on_only_to_trials_that_ask_for_the_same_on_the_same_cards() -> None:
    whole, half = Request(cpus=1, gpus=1), Request(cpus=1, gpus=0.5)
    bound = Request(cpus=1, gpus=1, label=CARD_LABEL, values=("A100-80GB", "L4-24GB"))

    groups = {placement_group({REQUEST: request}) for request in (whole, half, bound, Request(cpus=1, gpus=1))}

    assert len(groups) == 3


def test_a_request_for_some_cards_selects_their_nodes() -> None:
    bound = Request(cpus=1, gpus=0.25, label=CARD_LABEL, values=("A100-80GB", "L4-24GB"))

    group: Any = placement_group({REQUEST: bound})

    assert group.bundles == [{"CPU": 1.0, "GPU": 0.25}]
    assert group._bound.kwargs == {"bundle_label_selector": [{CARD_LABEL: "in(A100-80GB,L4-24GB)"}]}
