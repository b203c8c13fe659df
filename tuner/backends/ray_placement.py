"""What a Ray cluster has and may get, and requests in Ray's words. Runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from tuner.placing import CARD_LABEL, TYPE_LABEL, Node, Request

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.backends.placement import Placement

REQUEST = "request"
"""Key of a trial's request in what Ray passes on."""


def cluster_nodes() -> tuple[Node, ...]:
    """Nodes that are there, then those that the autoscaler may start."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(_node(node["Resources"], node.get("Labels") or {}) for node in alive)


def placement_group(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """A trial's request as Tune takes it; a worker goes on to trials of an equal one only."""
    request: Request = config[REQUEST]
    bundle = {"CPU": request.cpus, "GPU": request.gpus}
    if not request.label:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector(request)])


def selector(request: Request) -> dict[str, str]:
    """The nodes that a request is for."""
    return {request.label: f"in({','.join(request.values)})"} if request.label else {}


class PlacementWatch(tune.Callback):
    """Tells the placement what begins, and has it look after what waits."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray writes its callbacks down for a `restore`, which the journal takes the place of."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Look after what waits."""
        self._placement.watch()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A worker is at a trial."""
        self._placement.began(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A worker was lost, and its trial goes on elsewhere."""
        self._placement.lost(trial.trial_id)


def _node(resources: dict[str, float], labels: dict[str, str], count: int = 1, *, is_alive: bool = True) -> Node:
    return Node(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        labels=tuple((name, labels[name]) for name in (CARD_LABEL, TYPE_LABEL) if name in labels),
        count=count,
        is_alive=is_alive,
    )
