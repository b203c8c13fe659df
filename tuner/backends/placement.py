"""Who may be asked for when, and what each trial asks of the cluster. Runs on the driver; knows no Ray.

A trial is sampled when the study is asked for it, so asking early means that the sampler knows less. Hence only as many are out
as the cluster holds, nodes counted that its autoscaler may start. Trials of several sizes must not starve each other: after a
number of others has begun in front of one that waits, nothing is asked for until it has begun.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.backends import StudyVerbs
from tuner.errors import ResourcesError
from tuner.front import GIB
from tuner.placing import Asked, Cluster, Node, Request, has_room, missing_text, nodes_text, request_of, trials_on
from tuner.trial import TrialSpec

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction
    from tuner.resources_config import ResourcesConfig

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often the cluster is looked at."""
LEAST_AHEAD = 5
"""Trials that may wait for nodes that the autoscaler starts, at least; else as many as run, for it doubles a cluster too."""
MOST_OVERTAKING = 2
"""So many times the cluster's trials may begin in front of one that waits."""
STARTING_S = 10.0
"""A worker that takes longer to begin waits for a place, or for a slow node."""
MOST_HELD_BACK = 2
"""Trials that wait for one kind of card while others are asked for, which may take another kind."""
SAY_AFTER_S = 60.0
"""When nothing runs for so long, people are told what is waited for."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Out:
    """A trial that was given out and has not ended."""

    label: str
    request: Request
    since_s: float
    has_place: bool = False
    """Whether a worker has begun to start for it."""
    is_running: bool = False
    num_overtaken: int = 0


class Placement:
    """Keeps count of a sweep's trials on a cluster.

    Args:
        config: The sweep.
        study: Predicts a trial's peak.
        look: What nodes there are, and which ones may come.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        config: SweepConfig,
        study: StudyVerbs,
        look: Callable[[], Cluster],
        clock: Callable[[], float],
    ) -> None:
        self._resources = config.resources
        self._named = config.objectives.memory.gpu
        self._asked = asked_of(config.resources)
        self._study = study
        self._look = look
        self._clock = clock
        self._cluster = look()
        self._kinds = dict.fromkeys(map(_kind, self._cluster.nodes))
        """Every kind of node that there was or may be."""
        self._looked_s = clock()
        self._out: dict[str, _Out] = {}
        self._said: set[str] = set()
        self._idle_since_s: float | None = None

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune writes down what holds this for a `restore`, and the study may hold connections and threads."""
        return {}

    def may_ask(self) -> bool:
        """Whether another trial should be asked for now."""
        if not self._out:
            return True
        limit = self._resources.max_concurrent_trials
        if limit is not None and len(self._out) >= limit:
            return False
        self._refresh()
        least, (slots, gpus) = self._asked.least, self._expected()
        stuck = self._stuck()
        if len(stuck) >= slots or self._is_overtaken(slots):
            return False
        held_back = [out for out in self._out.values() if self._is_held_back(out)][:MOST_HELD_BACK]
        bound = [out for out in self._out.values() if out not in stuck and out not in held_back]
        return len(bound) < slots and sum(out.request.gpus for out in bound) + least.gpus <= gpus + 1e-9

    def asked(self, key: str, spec: TrialSpec) -> Request:
        """Take note of a trial that was given out.

        Args:
            key: Names it among those out.
            spec: The trial.

        Raises:
            ResourcesError: It fits on no card that the cluster has had so far or may get.
        """
        request = request_of(self._asked, tuple(self._kinds), lambda card: self._predicted(spec, card))
        if request is None or not (self._cluster.is_open or has_room(self._kinds, request)):
            raise ResourcesError(self._too_large(spec))
        self._out[key] = _Out(label=spec.label, request=request, since_s=self._clock())
        return request

    def placed(self, key: str) -> None:
        """Ray has given it a place, where a worker starts."""
        if (out := self._out.get(key)) is not None:
            out.has_place = True

    def began(self, key: str) -> None:
        """A worker is at it."""
        if (begun := self._out.get(key)) is None:  # stopped while it waited
            return
        begun.has_place = begun.is_running = True
        for other in self._out.values():
            other.num_overtaken += not other.has_place and other.since_s <= begun.since_s

    def lost(self, key: str) -> None:
        """Its worker was lost, and it waits for another."""
        if (lost := self._out.get(key)) is not None:
            self._out[key] = _Out(label=lost.label, request=lost.request, since_s=self._clock())

    def ended(self, key: str) -> None:
        """It is out no longer."""
        self._out.pop(key, None)

    def watch(self) -> None:
        """Look whether what waits can still begin; to be called often.

        Raises:
            ResourcesError: No node can take any of the trials, and none has come for `resources.node_wait_s`.
        """
        if self._clock() < self._looked_s + LOOK_EVERY_S:
            return
        self._refresh()
        waiting = [out for out in self._out.values() if not out.is_running]
        stuck = self._stuck()
        for out in stuck:
            self._say(out, missing_text(out.request, self._cluster.nodes))
        if not waiting or len(waiting) < len(self._out):
            self._idle_since_s = None
            return
        self._idle_since_s = self._clock() if self._idle_since_s is None else self._idle_since_s
        idle_s = self._clock() - self._idle_since_s
        if len(stuck) == len(waiting) and idle_s >= self._resources.node_wait_s:
            raise ResourcesError(self._waited_for(stuck[0]))
        if not stuck and idle_s >= SAY_AFTER_S:
            self._say(waiting[0], "the cluster is busy with other work, or still starts a node")

    def _refresh(self) -> None:
        if self._clock() >= self._looked_s + LOOK_EVERY_S:
            self._cluster, self._looked_s = self._look(), self._clock()
            self._kinds.update(dict.fromkeys(map(_kind, self._cluster.nodes)))

    def _expected(self) -> tuple[int, float]:
        """(trials of the smallest size, GPUs) that there is room for now, and of those to come no more than may come soon."""
        least = self._asked.least
        nodes = [node for node in self._cluster.nodes if node.is_alive and trials_on(node, least)]
        slots = sum(trials_on(node, least) * node.count for node in nodes)
        ahead = max(LEAST_AHEAD, slots)
        if self._cluster.is_open and self._resources.max_concurrent_trials is not None:
            return slots + ahead, sum(node.gpus * node.count for node in nodes) + ahead * least.gpus
        for node in self._cluster.nodes:
            if not node.is_alive and ahead > 0 and (fits := trials_on(node, least)):
                count = min(node.count, math.ceil(ahead / fits))
                nodes.append(_kind(node, count))
                slots, ahead = slots + count * fits, ahead - count * fits
        return slots, sum(node.gpus * node.count for node in nodes)

    def _stuck(self) -> list[_Out]:
        return [
            out for out in self._out.values() if not out.has_place and not has_room(self._cluster.nodes, out.request)
        ]

    def _is_overtaken(self, slots: int) -> bool:
        alive = [node for node in self._cluster.nodes if node.is_alive]
        return any(
            not out.has_place and out.num_overtaken >= MOST_OVERTAKING * slots and has_room(alive, out.request)
            for out in self._out.values()
        )

    def _is_held_back(self, out: _Out) -> bool:
        """Whether it waits for one kind of card, while another may be free."""
        return not out.has_place and bool(out.request.label) and self._clock() > out.since_s + STARTING_S

    def _predicted(self, spec: TrialSpec, card: Gpu | None) -> Prediction | None:
        is_only_one = len({node.card for node in self._kinds if node.gpus > 0}) == 1
        if card is None or card.name == self._named or (self._named is None and is_only_one):
            return self._record_prediction(spec)
        return self._study.predict(spec, card)

    def _record_prediction(self, spec: TrialSpec) -> Prediction | None:
        return next((record.prediction for record in self._study.records if record.number == spec.number), None)

    def _say(self, out: _Out, why: str) -> None:
        if out.label not in self._said:
            self._said.add(out.label)
            log.warning("%s waits for %s: %s", out.label, out.request, why)

    def _too_large(self, spec: TrialSpec) -> str:
        found = self._record_prediction(spec)
        peak = f", predicted to need {found.total_bytes / GIB:.2f} GiB," if found else ""
        nodes = nodes_text(self._cluster.nodes)
        cure = f"; objectives.memory.gpu is {self._named}, name a card that is there" if self._named else ""
        return f"resources: {spec.label}{peak} fits on no node of the cluster; nodes: {nodes}{cure}"

    def _waited_for(self, out: _Out) -> str:
        return (
            f"resources: {out.label} asks for {out.request}, and no node has that any more; waited "
            f"{self._resources.node_wait_s:g} s for one (resources.node_wait_s), the sweep can be resumed when it is back; "
            f"{missing_text(out.request, self._cluster.nodes)}"
        )


def asked_of(resources: ResourcesConfig) -> Asked:
    """What the sweep file says of every trial."""
    gpus = resources.gpus_per_trial
    return Asked(
        cpus=resources.cpus_per_trial,
        gpus=None if gpus == "auto" else gpus,
        max_per_gpu=resources.max_trials_per_gpu if gpus == "auto" else 1,
    )


def require_room(asked: Asked, cluster: Cluster) -> None:
    """Refuse what no node can ever run.

    Raises:
        ResourcesError: Says what is missing, and what there is.
    """
    if not has_room(cluster.nodes, asked.most) and not cluster.is_open:
        missing = missing_text(asked.most, cluster.nodes)
        raise ResourcesError(
            f"resources: a trial asks for {asked.most}, and no node of the cluster has that; {missing}"
        )


def _kind(node: Node, count: int = 1) -> Node:
    """A node as one of its kind, however many there are."""
    return Node(cpus=node.cpus, gpus=node.gpus, labels=node.labels, count=count)
