"""Where a trial may run is decided by what nodes have, what their labels say, and what its memory is predicted to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import make_prediction
from tuner.errors import ResourcesError
from tuner.gpus import GPUS, Gpu
from tuner.placing import (
    CARD_LABEL,
    TYPE_LABEL,
    Asked,
    Node,
    Request,
    card_of,
    has_room,
    inspecting_request,
    missing_text,
    nodes_text,
    request_of,
    share_of,
    trials_on,
)
from tuner.prediction import Prediction

GIB = 2**30
BY_MEMORY = Asked(cpus=1, gpus=None, max_per_gpu=4)


def node(cpus: float = 8, gpus: float = 1, card: str = "", kind: str = "", **others: object) -> Node:
    labels = [(CARD_LABEL, card)] * bool(card) + [(TYPE_LABEL, kind)] * bool(kind)
    return Node(cpus=cpus, gpus=gpus, labels=tuple(labels), **others)  # type: ignore[arg-type]


T4, L4, A100 = node(card="T4-16GB"), node(card="L4-24GB"), node(card="A100-80GB")


def needing(gib: float) -> Callable[[Gpu | None], Prediction]:
    """A trial that takes so much on every card; an unknown one is a T4."""
    return lambda card: make_prediction(int(gib * GIB), capacity_bytes=(card or GPUS["T4-16GB"]).memory_bytes)


@pytest.mark.parametrize(
    ("kind", "card"),
    [
        ("L4", "L4-24GB"),
        ("L40S", "L40S-48GB"),
        ("A100", "A100-40GB"),
        ("A100-80G", "A100-80GB"),
        ("GeForce-RTX-4090", "RTX4090-24GB"),
        ("RTX-A6000", "A6000-48GB"),
        ("H100", "H100-80GB"),
        ("TPU-V4", None),
        ("", None),
    ],
)
def test_what_ray_calls_a_card_is_the_smallest_of_that_name(kind: str, card: str | None) -> None:
    found = card_of({TYPE_LABEL: kind})

    assert (found.name if found else None) == card


def test_our_label_goes_before_rays_and_may_be_a_size() -> None:
    assert card_of({TYPE_LABEL: "A100", CARD_LABEL: "A100-80GB"}) == GPUS["A100-80GB"]
    part = card_of({TYPE_LABEL: "A100", CARD_LABEL: "10GiB"})
    assert part is not None
    assert part.memory_mib == 10 * 1024


def test_a_label_that_names_no_card_is_told() -> None:
    with pytest.raises(ResourcesError, match=r"label tuner/gpu must be one of T4-16GB.*got 'T44'"):
        card_of({CARD_LABEL: "T44"})


@pytest.mark.parametrize(
    ("there", "request_", "num"),
    [
        (node(8, 2), Request(cpus=1, gpus=1), 2),
        (node(8, 2), Request(cpus=1, gpus=0.5), 4),
        (node(8, 2), Request(cpus=1, gpus=0.6), 2),  # a trial lies on one card
        (node(8, 1), Request(cpus=1, gpus=0.3333), 3),
        (node(2, 2), Request(cpus=1, gpus=0.25), 2),
        (node(8, 4), Request(cpus=1, gpus=2), 2),
        (node(0, 4), Request(cpus=1, gpus=1), 0),
        (node(3, 0), Request(cpus=0.5, gpus=0), 6),
        (L4, Request(cpus=1, gpus=1, label=CARD_LABEL, values=("L4-24GB", "T4-16GB")), 1),
        (L4, Request(cpus=1, gpus=1, label=CARD_LABEL, values=("T4-16GB",)), 0),
        (node(), Request(cpus=1, gpus=1, label=CARD_LABEL, values=("T4-16GB",)), 0),
    ],
)
def test_as_many_trials_run_on_a_node_as_its_cores_and_cards_hold(there: Node, request_: Request, num: int) -> None:
    assert trials_on(there, request_) == num


@settings(derandomize=True, deadline=None)
@given(num=st.integers(1, 64))
def test_as_many_shares_fit_on_a_card_as_it_was_shared_by(num: int) -> None:
    assert trials_on(node(cpus=1000), Request(cpus=1, gpus=share_of(num))) >= num


@settings(derandomize=True, deadline=None)
@given(num_gpus=st.integers(0, 8), num=st.integers(1, 8))
def test_trials_on_a_node_never_ask_for_more_than_it_has(num_gpus: int, num: int) -> None:
    there, request = node(1000, num_gpus), Request(cpus=1, gpus=share_of(num))

    assert trials_on(there, request) * request.gpus <= num_gpus + 1e-9


@pytest.mark.parametrize(("gib", "share"), [(1, 0.25), (4, 0.3333), (6, 0.5), (12, 1.0)])
def test_a_trial_asks_for_the_share_of_a_card_that_its_memory_needs(gib: float, share: float) -> None:
    request = request_of(BY_MEMORY, (T4,), needing(gib))

    assert request is not None
    assert request.gpus == pytest.approx(share)
    assert request.label == ""


def test_where_nothing_is_predicted_a_trial_gets_a_whole_card() -> None:
    assert request_of(BY_MEMORY, (T4, L4), lambda _: None) == Request(cpus=1, gpus=1)


@pytest.mark.parametrize("asked", [BY_MEMORY, Asked(cpus=1, gpus=0.5)])
def test_a_trial_goes_only_to_cards_that_it_fits_on(asked: Asked) -> None:
    large = request_of(asked, (T4, L4, A100), needing(18))
    largest = request_of(asked, (T4, L4, A100), needing(60))

    assert large is not None
    assert (large.label, large.values) == (CARD_LABEL, ("A100-80GB", "L4-24GB"))
    assert largest is not None
    assert largest.values == ("A100-80GB",)
    assert request_of(asked, (T4, L4, A100), needing(90)) is None


def test_of_several_kinds_of_cards_the_smallest_decides_on_the_share() -> None:
    request = request_of(BY_MEMORY, (T4, A100), needing(6))

    assert request == Request(cpus=1, gpus=0.5)


def test_what_may_fit_goes_where_it_surely_fits_if_there_is_such_a_card() -> None:
    barely = needing(13.9)  # within the margin of a T4

    beside = request_of(BY_MEMORY, (T4, L4), barely)
    alone = request_of(BY_MEMORY, (T4,), barely)

    assert beside is not None
    assert beside.values == ("L4-24GB",)
    assert alone == Request(cpus=1, gpus=1)


def test_a_card_that_nobody_knows_is_not_trusted_beside_known_ones() -> None:
    request = request_of(BY_MEMORY, (node(), L4), needing(1))

    assert request is not None
    assert request.values == ("L4-24GB",)
    assert request_of(BY_MEMORY, (node(),), needing(1)) == Request(cpus=1, gpus=0.25)


def test_nodes_that_ray_has_labelled_need_no_label_of_ours() -> None:
    small, large = node(kind="T4"), node(kind="A100", card="A100-80GB")

    request = request_of(BY_MEMORY, (small, large), needing(20))

    assert request is not None
    assert (request.label, request.values) == (CARD_LABEL, ("A100-80GB",))
    by_ray = request_of(BY_MEMORY, (small, node(kind="L4")), needing(20))
    assert by_ray is not None
    assert (by_ray.label, by_ray.values) == (TYPE_LABEL, ("L4",))


@settings(derandomize=True, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(GPUS)), min_size=1, max_size=5),
    gib=st.floats(0.1, 200),
    by_ray=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_wherever_a_request_can_land_the_trial_fits_beside_as_many_like_it(
    names: list[str], gib: float, by_ray: list[bool]
) -> None:
    types = {name: name.partition("-")[0] for name in names}
    nodes = tuple(
        node(100, 1, kind=types[name]) if is_by_ray else node(100, 1, card=name)
        for name, is_by_ray in zip(names, by_ray, strict=False)
    )
    predicted = needing(gib)
    request = request_of(BY_MEMORY, nodes, predicted)

    for there in nodes:
        room = max(1, predicted(there.card).side_by_side())
        if request and (num := trials_on(there, request)):
            assert num <= room
            assert predicted(there.card).verdict != "does not fit"


def test_a_trial_on_the_cpu_asks_for_no_card() -> None:
    assert request_of(Asked(cpus=0.5, gpus=0), (T4, L4), needing(99)) == Request(cpus=0.5, gpus=0)


def test_model_and_data_are_looked_at_on_the_largest_card() -> None:
    assert inspecting_request(BY_MEMORY, (T4, A100, L4)).values == ("A100-80GB",)
    assert inspecting_request(BY_MEMORY, (T4, T4)) == Request(cpus=1, gpus=1)
    assert inspecting_request(Asked(cpus=2, gpus=0), (T4, L4)) == Request(cpus=2, gpus=0)


@pytest.mark.parametrize(
    ("request_", "missing"),
    [
        (Request(cpus=64, gpus=1), "missing: 64 CPU on one node, the most there is 8"),
        (Request(cpus=1, gpus=8), "missing: 8 GPU on one node, the most there is 2"),
        (Request(cpus=8, gpus=2), "missing: both on the same node"),
        (
            Request(cpus=1, gpus=1, label=CARD_LABEL, values=("L4-24GB",)),
            "missing: a node whose label tuner/gpu is L4-24GB",
        ),
    ],
)
def test_what_is_missing_is_told_with_what_there_is(request_: Request, missing: str) -> None:
    nodes = (node(8, 0), node(4, 2, card="T4-16GB"), node(4, 2, card="T4-16GB"))

    assert not has_room(nodes, request_)
    text = missing_text(request_, nodes)
    assert text.startswith(missing)
    assert text.endswith("nodes: 1 x 8 CPU and 0 GPU, 2 x 4 CPU and 2 GPU (T4-16GB)")


def test_nodes_that_may_come_are_told_apart_from_those_that_are_there() -> None:
    nodes = (node(2, 0), node(8, 1, kind="L4", count=4, is_alive=False), node(8, 1))

    text = nodes_text(nodes)

    assert text == (
        "1 x 2 CPU and 0 GPU, 1 x 8 CPU and 1 GPU (card unknown), "
        "the autoscaler may start up to 4 x 8 CPU and 1 GPU (L4-24GB)"
    )
