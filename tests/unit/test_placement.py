"""Who is asked for when: as many as the cluster holds, no size starved by another, nothing waited for in vain."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import make_config, make_prediction, make_record, make_spec
from tuner.backends.placement import LEAST_AHEAD, MOST_OVERTAKING, Placement, asked_of, require_room
from tuner.errors import ResourcesError
from tuner.gpus import GPUS, Gpu
from tuner.placing import CARD_LABEL, Cluster, Node, Request
from tuner.prediction import Prediction
from tuner.trial import Decision, Metrics, Outcome, TrialRecord, TrialSpec, TrialState

GIB = 2**30
T4 = GPUS["T4-16GB"]


def cpu_node(cpus: float, **others: Any) -> Node:
    return Node(cpus=cpus, gpus=0, **others)


def gpu_node(card: str, gpus: float = 1, **others: Any) -> Node:
    return Node(cpus=16, gpus=gpus, labels=((CARD_LABEL, card),), **others)


@dataclass
class Predicting:
    """A study that knows what each trial needs, in GiB, on every card; its records, on the largest there was at the start."""

    needs_gib: dict[int, float] = field(default_factory=dict)
    largest: Gpu = T4
    is_over: bool = False
    is_interrupted: bool = False

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        specs = [make_spec(number) for number in self.needs_gib]
        return tuple(
            TrialRecord(spec=spec, state=TrialState.RUNNING, prediction=self.predict(spec, self.largest))
            for spec in specs
        )

    def interrupt(self, problem: str) -> None:
        """Nothing to stop."""

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        return make_prediction(int(self.needs_gib[spec.number] * GIB), capacity_bytes=gpu.memory_bytes)

    def ask(self) -> TrialSpec | None:
        return None

    def report(self, number: int, metrics: Metrics) -> Decision:
        return Decision.CONTINUE

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        return make_record(number)


class World:
    """A placement, the cluster that it looks at, and the time."""

    def __init__(self, *nodes: Node, needs_gib: dict[int, float] | None = None, **resources: Any) -> None:
        self.cluster = Cluster(nodes=nodes)
        self.now_s = 0.0
        self.num = 0
        config = make_config(resources=resources)
        study = Predicting(needs_gib or {}, max((node.card or T4 for node in nodes), key=lambda card: card.memory_mib))
        self.placement = Placement(config, study, lambda: self.cluster, lambda: self.now_s)

    def ask_all(self, most: int = 100) -> list[Request]:
        """Ask for as many as may be."""
        requests: list[Request] = []
        while len(requests) < most and self.placement.may_ask():
            requests.append(self.placement.asked(str(self.num), make_spec(self.num)))
            self.num += 1
        return requests

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds


def test_as_many_trials_are_asked_for_as_the_cluster_holds() -> None:
    world = World(cpu_node(2), cpu_node(3))

    assert len(world.ask_all()) == 5
    world.placement.began("0")
    assert world.ask_all() == []
    world.placement.ended("0")
    assert len(world.ask_all()) == 1


def test_a_sweep_that_is_told_so_asks_for_fewer() -> None:
    assert len(World(cpu_node(8), max_concurrent_trials=3).ask_all()) == 3


def test_a_cluster_that_grows_gets_more_trials() -> None:
    world = World(cpu_node(1))
    world.ask_all()
    world.cluster = Cluster(nodes=(cpu_node(1), cpu_node(4)))

    world.pass_time(1.5)

    assert len(world.ask_all()) == 4


def test_nodes_that_may_be_started_get_as_many_trials_as_run_and_some_at_the_least() -> None:
    empty = World(cpu_node(0), cpu_node(1, count=100, is_alive=False))
    running = World(cpu_node(20), cpu_node(1, count=100, is_alive=False))
    nearly_grown = World(cpu_node(20), cpu_node(1, count=2, is_alive=False))

    assert len(empty.ask_all()) == LEAST_AHEAD
    assert len(running.ask_all()) == 40
    assert len(nearly_grown.ask_all()) == 22


def test_where_an_autoscalers_limits_are_not_seen_the_sweeps_own_says_how_far_to_grow() -> None:
    limited, unlimited = World(cpu_node(4), max_concurrent_trials=7), World(cpu_node(4))
    for world in (limited, unlimited):
        world.cluster = Cluster(nodes=(cpu_node(4),), is_open=True)
        world.pass_time(2)

    assert len(limited.ask_all()) == 7
    assert len(unlimited.ask_all()) == 4


def test_trials_share_a_card_by_their_predicted_memory() -> None:
    needs = {number: 3.0 if number < 4 else 10.0 for number in range(9)}
    world = World(gpu_node("T4-16GB", gpus=2), needs_gib=needs, gpus_per_trial="auto")

    requests = world.ask_all()

    assert [request.gpus for request in requests] == [0.25, 0.25, 0.25, 0.25, 1.0]


def test_no_card_is_shared_by_more_than_the_file_says() -> None:
    world = World(
        gpu_node("T4-16GB"), needs_gib=dict.fromkeys(range(9), 0.1), gpus_per_trial="auto", max_trials_per_gpu=2
    )

    assert [request.gpus for request in world.ask_all()] == [0.5, 0.5]


def test_a_few_trials_bound_to_one_kind_of_card_do_not_keep_the_others_idle() -> None:
    needs = {0: 60.0, 1: 60.0, 2: 60.0, **dict.fromkeys(range(3, 9), 3.0)}
    world = World(gpu_node("T4-16GB"), gpu_node("A100-80GB"), needs_gib=needs, gpus_per_trial="auto")
    first = world.ask_all()
    world.placement.began("0")

    world.pass_time(11)
    then = world.ask_all(most=1)

    assert [request.values for request in (*first, *then)] == [("A100-80GB",)] * 3
    world.pass_time(11)
    assert [request.values for request in world.ask_all()] == [()] * 4


def test_a_large_trial_is_overtaken_only_so_often() -> None:
    needs = {number: 10.0 if number == 4 else 3.0 for number in range(99)}
    world = World(gpu_node("T4-16GB", gpus=2), needs_gib=needs, gpus_per_trial="auto")
    world.ask_all()
    running = ["0", "1", "2", "3"]
    for key in running:
        world.placement.began(key)

    num_overtaking = 0
    while running:  # where a small one ends, another takes its place: no card may ever be free as a whole
        world.placement.ended(running.pop())
        for _ in world.ask_all(most=1):
            running.append(str(world.num - 1))
            world.placement.began(running[-1])
            num_overtaking += 1

    assert 0 < num_overtaking <= MOST_OVERTAKING * 8
    world.placement.began("4")
    world.placement.ended("4")
    assert world.ask_all(most=1)


def test_a_trial_whose_worker_still_starts_is_not_held_up_for() -> None:
    world = World(cpu_node(2))
    world.ask_all()
    world.placement.placed("1")

    running = "0"
    for _ in range(20):  # quick ones, one after another, beside the one that starts
        world.placement.began(running)
        world.placement.ended(running)
        assert len(world.ask_all()) == 1
        running = str(world.num - 1)


def test_a_trial_whose_worker_was_lost_waits_again() -> None:
    world = World(cpu_node(1), node_wait_s=10)
    world.ask_all()
    world.placement.began("0")
    world.cluster = Cluster(nodes=())
    world.pass_time(2)
    world.placement.watch()

    world.placement.lost("0")
    for _ in range(6):
        world.pass_time(1.5)
        world.placement.watch()
    world.pass_time(5)

    with pytest.raises(ResourcesError, match="no node has that any more"):
        world.placement.watch()


def test_a_node_that_left_is_waited_for_and_then_missed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World(cpu_node(1), gpu_node("T4-16GB"), gpus_per_trial=1)
    world.ask_all()
    world.cluster = Cluster(nodes=(cpu_node(1),))
    for _ in range(59):
        world.pass_time(10)
        world.placement.watch()
    waits = caplog.messages

    world.pass_time(11)
    world.pass_time(11)

    assert waits == [
        "trial 0 waits for 1 CPU and 1 GPU: missing: 1 GPU on one node, the most there is 0; nodes: 1 x 1 CPU and 0 GPU"
    ]
    with pytest.raises(
        ResourcesError, match=r"waited 600 s for one \(resources.node_wait_s\), the sweep can be resumed"
    ):
        world.placement.watch()


def test_a_node_that_comes_back_in_time_ends_the_wait() -> None:
    world = World(gpu_node("T4-16GB"), gpus_per_trial=1)
    world.ask_all()
    world.cluster = Cluster(nodes=())
    world.pass_time(500)
    world.placement.watch()
    world.cluster = Cluster(nodes=(gpu_node("T4-16GB"),))
    world.pass_time(500)
    world.placement.watch()
    world.placement.began("0")
    world.pass_time(500)

    world.placement.watch()


def test_trials_that_can_run_go_on_while_others_wait_for_a_node_that_left() -> None:
    needs = {0: 60.0, **dict.fromkeys(range(1, 20), 3.0)}
    world = World(gpu_node("T4-16GB"), gpu_node("A100-80GB"), needs_gib=needs, gpus_per_trial="auto")
    world.ask_all(most=1)
    world.cluster = Cluster(nodes=(gpu_node("T4-16GB"),))
    world.pass_time(2)

    assert len(world.ask_all()) == 4
    for number in range(1, 5):
        world.placement.began(str(number))
    world.pass_time(5000)
    world.placement.watch()


def test_a_busy_cluster_is_waited_for_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World(cpu_node(1))
    world.ask_all()

    for _ in range(100):
        world.pass_time(30)
        world.placement.watch()

    assert caplog.messages == [
        "trial 0 waits for 1 CPU and 0 GPU: the cluster is busy with other work, or still starts a node"
    ]


def test_a_trial_that_fits_on_no_card_of_the_cluster_is_told_with_its_peak() -> None:
    world = World(gpu_node("T4-16GB"), gpu_node("L4-24GB"), needs_gib={0: 60.0}, gpus_per_trial="auto")

    with pytest.raises(
        ResourcesError, match=r"trial 0, predicted to need 60.00 GiB, fits on no node .*T4-16GB.*L4-24GB"
    ):
        world.ask_all()


def test_a_small_card_that_left_is_still_kept_from_large_trials() -> None:
    world = World(gpu_node("T4-16GB"), gpu_node("A100-80GB"), needs_gib={0: 60.0}, gpus_per_trial="auto")
    world.cluster = Cluster(nodes=(gpu_node("A100-80GB"),))
    world.pass_time(2)

    [request] = world.ask_all(most=1)

    assert request.values == ("A100-80GB",)


def test_what_no_node_can_ever_run_is_refused_and_what_may_come_is_not() -> None:
    asked = asked_of(make_config(resources={"gpus_per_trial": 1}).resources)

    with pytest.raises(
        ResourcesError, match=r"asks for 1 CPU and 1 GPU, and no node of the cluster has that; missing: 1 GPU"
    ):
        require_room(asked, Cluster(nodes=(cpu_node(8),)))
    require_room(asked, Cluster(nodes=(cpu_node(8), gpu_node("L4-24GB", is_alive=False))))
    require_room(asked, Cluster(nodes=(cpu_node(8),), is_open=True))


@settings(derandomize=True, deadline=None)
@given(
    needs=st.lists(st.sampled_from([1.0, 3.0, 6.0, 13.0, 20.0, 60.0]), min_size=1, max_size=25),
    cards=st.lists(st.sampled_from(["T4-16GB", "L4-24GB", "A100-80GB"]), max_size=3),
    draws=st.randoms(use_true_random=False),
)
def test_whatever_sizes_come_all_trials_get_through_and_every_card_holds_what_is_on_it(
    needs: list[float], cards: list[str], draws: Random
) -> None:
    """Ray is played by the first free card that will do; trials end in any order."""
    free = dict.fromkeys(enumerate(["A100-80GB", *cards]), 1.0)
    world = World(*(gpu_node(card) for _, card in free), needs_gib=dict(enumerate(needs)), gpus_per_trial="auto")
    waiting: dict[int, Request] = {}
    running: dict[int, tuple[Request, tuple[int, str]]] = {}
    num_ended = 0

    while num_ended < len(needs):
        first = world.num
        for offset, request in enumerate(world.ask_all(most=len(needs) - first)):
            waiting[first + offset] = request
        for number, request in list(waiting.items()):
            fits = [
                one for one in free if free[one] >= request.gpus and (one[1] in request.values or not request.label)
            ]
            if fits:
                free[fits[0]] -= request.gpus
                running[number] = (waiting.pop(number), fits[0])
                world.placement.began(str(number))
        for place in free:
            on_card = [needs[number] for number, (_, where) in running.items() if where == place]
            assert 1.05 * sum(on_card) <= GPUS[place[1]].memory_bytes / GIB
        assert running, "nothing runs, and something waits"
        number = draws.choice(sorted(running))
        request, place = running.pop(number)
        free[place] += request.gpus
        world.placement.ended(str(number))
        world.pass_time(draws.choice([0.1, 20.0]))
        num_ended += 1
