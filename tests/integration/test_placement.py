"""Trials land where they fit, share cards, and starve or block each other never: on several real Ray nodes with logical GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.placed_workers import stays_in, wait_for
from tests.sweeps import write_sweep
from tests.with_predictions import drive, ended
from tuner import sweep
from tuner.gpus import GPUS
from tuner.trial import TrialState

pytestmark = pytest.mark.ray

PLACED = "tests.placed_workers:PlacedWorker"
MEETING = "tests.placed_workers:MeetingWorker"
SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
NEEDS_GIB = {1: 3.0, 4: 10.0, 8: 60.0}
"""Rank -> what such a trial is predicted to need: a quarter of a T4, most of one, most of an A100."""
BY_TWOS = {"resources": {"gpus_per_trial": "auto", "max_trials_per_gpu": 2}}
SMALL, LARGE = {"search.space.r": {"choices": [1]}}, {"search.space.r": {"choices": [8]}}


@dataclass
class Nodes:
    """A cluster of node processes on this machine."""

    cluster: Any
    cards: dict[str, str]
    """Node id -> card."""

    def add(self, card: str = "", **resources: Any) -> Any:
        """A node; with a card it has one logical GPU of that kind."""
        gpu = {"num_gpus": 1, "labels": {"tuner/gpu": card}} if card else {}
        node = self.cluster.add_node(**{"num_cpus": 8, **gpu, **resources})
        self.cards[node.node_id] = card
        return node


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head that runs no trials, a T4 and an A100."""
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    reset_ray_address()  # or else any ray.init() on this machine would join it (ray 2.60)
    nodes = Nodes(cluster=cluster, cards={})
    nodes.add("T4-16GB")
    nodes.add("A100-80GB")
    yield nodes
    cluster.shutdown()  # type: ignore[no-untyped-call]


def carry_out(nodes: Nodes, place: Path, changes: dict[str, Any], worker: str) -> str:
    """Run a sweep of trials on GPUs to its end; what went wrong, if anything did."""
    defaults = {
        "pruning.method": "none",
        "resources": {"gpus_per_trial": "auto"},
        "objectives.memory": {"gpu": "A100-80GB"},
    }
    write_sweep(place, {**defaults, **changes})
    return ended(drive("run", place, nodes.cluster.address, worker, NEEDS_GIB)).rpartition("\n")[2]


def states(place: Path) -> set[TrialState]:
    return {record.state for record in sweep.load(place / "out").records}


def ranks(place: Path) -> dict[int, int]:
    return {record.number: record.spec.lora.r for record in sweep.load(place / "out").trials if record.spec.lora}


def test_trials_of_all_sizes_get_through_each_only_where_it_fits_beside_what_is_there(
    nodes: Nodes, tmp_path: Path
) -> None:
    failure = carry_out(nodes, tmp_path, {"search.num_trials": 9}, PLACED)

    assert failure == ""
    assert states(tmp_path) == {TrialState.COMPLETE}
    sizes = ranks(tmp_path)
    stays = [stay for stay in stays_in(tmp_path) if stay.number in sizes]
    assert {nodes.cards[stay.node] for stay in stays if sizes[stay.number] == 8} == {"A100-80GB"}
    assert {sizes[stay.number] for stay in stays} == {1, 4, 8}
    for stay in stays:
        others = [
            other for other in stays if other.place == stay.place and other.begun_s <= stay.begun_s < other.ended_s
        ]
        needed_gib = sum({other.number: NEEDS_GIB[sizes[other.number]] for other in others}.values())
        assert needed_gib * 1.05 <= GPUS[nodes.cards[stay.node]].memory_bytes / 2**30


def test_two_small_trials_share_a_card_at_the_same_time(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "meeting").write_text("2 card")

    failure = carry_out(nodes, tmp_path, {**SMALL, **BY_TWOS, "search.num_trials": 4}, MEETING)

    assert failure == ""
    assert states(tmp_path) == {TrialState.COMPLETE}
    assert list((tmp_path / "placed").glob("met-*"))  # on one card or both: who is quick takes the next


def test_what_no_node_has_is_refused_at_once_with_what_is_missing_and_what_there_is(
    nodes: Nodes, tmp_path: Path
) -> None:
    failure = carry_out(nodes, tmp_path, {"resources": {"gpus_per_trial": 4}}, PLACED)

    assert failure.startswith(
        "ResourcesError: resources: a trial asks for 1 CPU and 4 GPU, and no node of the cluster has that"
    )
    assert "missing: 4 GPU on one node, the most there is 1" in failure
    assert "1 x 8 CPU and 1 GPU (T4-16GB)" in failure
    assert not (tmp_path / "out").exists()


def test_a_sweep_whose_only_fitting_node_leaves_says_so_ends_and_goes_on_when_it_is_back(
    nodes: Nodes, tmp_path: Path
) -> None:
    leaving = nodes.add("H200-141GB")
    changes = {
        **LARGE,
        "pruning.method": "none",
        "data.test": 0,
        "search.num_trials": 2,
        "resources": {"gpus_per_trial": "auto", "node_wait_s": 4, "max_worker_restarts": 9},
    }
    write_sweep(tmp_path, changes)
    (tmp_path / "meeting").write_text("9 card")  # which does not come about
    process = drive("run", tmp_path, nodes.cluster.address, MEETING, {8: 100.0})
    wait_for(lambda: any((tmp_path / "placed").glob("*.present")))

    nodes.cluster.remove_node(leaving)
    errors = ended(process)

    assert "waits for 1 CPU and 1 GPU on H200-141GB: missing: a node whose label tuner/gpu is H200-141GB" in errors
    assert "ResourcesError: resources: trial 0 asks for" in errors.splitlines()[-1]
    back = nodes.add("H200-141GB")
    process = drive("resume", tmp_path, nodes.cluster.address, PLACED, {8: 100.0})
    assert ended(process) == ""
    assert states(tmp_path) == {TrialState.COMPLETE}
    nodes.cluster.remove_node(back)


def test_a_node_that_joins_while_the_sweep_runs_gets_trials(nodes: Nodes, tmp_path: Path) -> None:
    changes = {"pruning.method": "none", "data.test": 0, "search.num_trials": 6, "resources": {"cpus_per_trial": 8}}
    write_sweep(tmp_path, changes)
    (tmp_path / "meeting").write_text("3 nodes")
    process = drive("run", tmp_path, nodes.cluster.address, MEETING)
    wait_for(lambda: len(list((tmp_path / "placed").glob("*.present"))) == 2)

    joined = nodes.add()

    assert ended(process) == ""
    assert joined.node_id in {stay.node for stay in stays_in(tmp_path)}
    nodes.cluster.remove_node(joined)


@pytest.mark.usefixtures("ray_cluster")
def test_many_quick_trials_get_through_two_slots_in_turn_and_both_workers_work(tmp_path: Path) -> None:
    changes = {"search.num_trials": 100, "pruning.method": "none", "training.max_steps": 2, "data.test": 0}

    swept = sweep.run(write_sweep(tmp_path, changes), out=tmp_path / "out", backend="ray", worker=PLACED)

    stays = stays_in(tmp_path)
    begun_s = {stay.number: stay.begun_s for stay in reversed(stays)}
    num_done = Counter(stay.process for stay in stays)
    assert {record.state for record in swept.records} == {TrialState.COMPLETE}
    assert all(begun_s[number] < begun_s[number + 10] for number in range(2, 90))  # the first two start workers
    assert len(num_done) == 2
    assert min(num_done.values()) >= 10


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_much_slower_than_the_others_holds_none_of_them_up(tmp_path: Path) -> None:
    changes = {"search.num_trials": 20, "pruning.method": "none"}
    file = write_sweep(tmp_path, changes)
    (tmp_path / "local").mkdir()
    expected = sweep.run(file, out=tmp_path / "local" / "out", backend="local", worker=SYNTHETIC)

    swept = sweep.run(file, out=tmp_path / "out", backend="ray", worker="tests.placed_workers:LaggingWorker")

    assert swept.records == expected.records
    assert {record.state for record in swept.records} == {TrialState.COMPLETE}
