"""What a Ray cluster has and may get, and requests in Ray's words. Runs on the driver."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuner.backends.ray_autoscaler import NodeGroup, node_groups
from tuner.errors import ResourcesError
from tuner.placing import CARD_LABEL, TYPE_LABEL, Cluster, Node, Request, has_room, missing_text

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from tuner.backends.placement import Placement

log = logging.getLogger(__name__)

GROUP_LABEL = "ray.io/node-group"
"""Node label by which Ray tells what the autoscaler has started."""
REQUEST = "request"
"""Key of a trial's request in what Ray passes on."""

_TYPE_RESOURCE = "accelerator_type:"


def ray_cluster() -> Cluster:
    """What the connected cluster has, and what its autoscaler may still start."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    started = Counter(node["Labels"].get(GROUP_LABEL) for node in alive)
    groups = node_groups()
    to_come = [
        _node(dict(group.resources), _labels_of(group), left, is_alive=False)
        for group in groups
        if (left := group.max_nodes - started[group.name]) > 0
    ]
    here = [_node(node["Resources"], node["Labels"]) for node in alive]
    return Cluster(nodes=(*here, *to_come), is_open=not groups and any(name is not None for name in started))


def placement_group(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """A trial's request as Tune takes it; a worker goes on to trials of an equal one only."""
    return _factory(config[REQUEST])


@contextlib.contextmanager
def reserved(request: Request, wait_s: float) -> Iterator[PlacementGroupSchedulingStrategy]:
    """A place for something that is no trial; nodes may have to be started for it.

    Args:
        request: What it needs.
        wait_s: How long to wait for a node that nobody knows to be there or to come.

    Raises:
        ResourcesError: No such node has come.
    """
    group = _factory(request).to_placement_group()  # type: ignore[no-untyped-call]
    try:
        while not group.wait(wait_s):
            nodes = ray_cluster().nodes
            if not has_room(nodes, request):
                missing = missing_text(request, nodes)
                raise ResourcesError(f"resources: waited {wait_s:g} s for {request} (resources.node_wait_s); {missing}")
            log.warning("the sweep waits for %s: the cluster is busy with other work, or still starts a node", request)
        yield PlacementGroupSchedulingStrategy(group)
    finally:
        ray.util.remove_placement_group(group)


def _factory(request: Request) -> tune.PlacementGroupFactory:
    bundle = {"CPU": request.cpus, "GPU": request.gpus}
    if not request.label:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory(
        [bundle], bundle_label_selector=[{request.label: f"in({','.join(request.values)})"}]
    )


def first_without_place(tune_controller: TuneController, placement: Placement) -> Trial | None:
    """The trial that a free worker should go to: the first that waits for a place. The placement is told who has one.

    Tune's own choice is the first that waits, also for a worker that is just starting, which it then ends. So where trials
    end faster than workers start, a node that joins would never come to work (ray 2.60).
    """
    runner = tune_controller._tune_controller  # type: ignore[attr-defined]  # noqa: SLF001 -- it is wrapped
    is_started, actors = runner._actor_manager.is_actor_started, runner._trial_to_actor  # noqa: SLF001
    starting = {trial for trial, actor in actors.items() if is_started(actor)}
    for trial in starting:
        placement.placed(trial.trial_id)
    waiting = (trial for trial in runner.get_trials() if trial.status == Trial.PENDING and trial not in starting)
    return next(waiting, None)


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


def _labels_of(group: NodeGroup) -> dict[str, str]:
    """Labels that its nodes will have; Ray adds the type of the card, which the file may tell as a resource."""
    kinds = [name.removeprefix(_TYPE_RESOURCE) for name, _ in group.resources if name.startswith(_TYPE_RESOURCE)]
    return dict([*((TYPE_LABEL, kind) for kind in kinds), *group.labels])


def _node(resources: Mapping[str, float], labels: Mapping[str, str], count: int = 1, *, is_alive: bool = True) -> Node:
    return Node(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        labels=tuple((name, labels[name]) for name in (CARD_LABEL, TYPE_LABEL) if name in labels),
        count=count,
        is_alive=is_alive,
    )
