"""Which nodes have room for a trial, how much of a card it asks for, and what is missing where none has it.

Pure; runs on the driver.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import ResourcesError
from tuner.gpus import GPUS, Gpu, gpu_named
from tuner.prediction import Prediction, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

CARD_LABEL = "tuner/gpu"
"""Node label that names its card as a sweep file does."""
TYPE_LABEL = "ray.io/accelerator-type"
"""Node label that Ray sets itself; `A100` leaves open how much memory there is."""
LEAST_SHARE = 1e-4
"""Ray counts in steps of this size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What a node of the cluster has, or would have."""

    cpus: float
    """CPU cores that Ray gives out."""
    gpus: float
    """GPUs that Ray gives out."""
    labels: tuple[tuple[str, str], ...] = ()
    """(label, value) of those that tell its card."""
    count: int = 1
    """How many such nodes there are or may be."""
    is_alive: bool = True
    """Whether it is there; else the autoscaler may start it."""

    @property
    def card(self) -> Gpu | None:
        """What its GPUs are; None where no label tells, or where it has none."""
        return card_of(dict(self.labels)) if self.gpus > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is there, and what may come."""

    nodes: tuple[Node, ...]
    """Nodes that are there, then those that the autoscaler may start."""
    is_open: bool = False
    """Whether other nodes may come, of which nobody can tell: on Kubernetes an autoscaler's limits are not seen from within."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the sweep file says of every trial."""

    cpus: float
    """CPU cores."""
    gpus: float | None
    """GPUs; None lets the predicted memory decide."""
    max_per_gpu: int = 1
    """Most trials on a card where the memory decides."""

    @property
    def least(self) -> Request:
        """The smallest request that a trial may come to."""
        return Request(cpus=self.cpus, gpus=share_of(self.max_per_gpu) if self.gpus is None else self.gpus)

    @property
    def most(self) -> Request:
        """The largest one."""
        return Request(cpus=self.cpus, gpus=1.0 if self.gpus is None else self.gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What one trial asks for."""

    cpus: float
    """CPU cores."""
    gpus: float
    """GPUs; a fraction shares a card."""
    label: str = ""
    """Label that its node must have; empty if any node will do."""
    values: tuple[str, ...] = ()
    """What the label may say."""

    def __str__(self) -> str:
        asked = f"{self.cpus:g} CPU and {self.gpus:g} GPU"
        return f"{asked} on {' or '.join(self.values)}" if self.values else asked


def card_of(labels: dict[str, str]) -> Gpu | None:
    """The card that a node's labels tell; None where they don't.

    Raises:
        ResourcesError: The label that is ours names none.
    """
    if (name := labels.get(CARD_LABEL)) is not None:
        try:
            return gpu_named(name)
        except ValueError as error:
            raise ResourcesError(f"a node's label {CARD_LABEL} {error}") from error
    return _card_of_type(labels.get(TYPE_LABEL, ""))


def _card_of_type(kind: str) -> Gpu | None:
    """The card that Ray's name means, such as `L4`, `A100-40G` or `GeForce-RTX-4090`: the smallest where several may be meant."""
    name = kind.removeprefix("GeForce-").replace("RTX-", "RTX")
    names = (name, name.removeprefix("RTX"))
    meant = [gpu for gpu in GPUS.values() if any(_is_named(gpu.name, short) for short in names)]
    return min(meant, key=lambda gpu: gpu.memory_mib, default=None)


def _is_named(name: str, short: str) -> bool:
    return bool(short) and (name.startswith(f"{short}-") or ("-" in short and name.startswith(short)))


def share_of(num_trials: int) -> float:
    """What one of several trials asks of a card, rounded down as Ray counts."""
    return math.floor(1 / num_trials / LEAST_SHARE) * LEAST_SHARE if num_trials > 1 else 1.0


def trials_on(node: Node, request: Request) -> int:
    """How many such trials run at the same time on one such node."""
    if request.label and dict(node.labels).get(request.label) not in request.values:
        return 0
    fits = math.floor(node.cpus / request.cpus + 1e-9)
    if request.gpus > 0:
        fits = min(fits, _on_cards(node.gpus, request.gpus))
    return fits


def _on_cards(gpus: float, share: float) -> int:
    """A fraction lies on one card: two cards take two trials of 0.6, not three."""
    if share >= 1:
        return math.floor(gpus / share + 1e-9)
    whole = math.floor(gpus + 1e-9)
    return whole * math.floor(1 / share + 1e-9) + math.floor((gpus - whole) / share + 1e-9)


def has_room(nodes: Iterable[Node], request: Request) -> bool:
    """Whether any node could run it when nothing else does."""
    return any(trials_on(node, request) for node in nodes)


def request_of(
    asked: Asked, nodes: Collection[Node], predicted: Callable[[Gpu | None], Prediction | None]
) -> Request | None:
    """What a trial asks for, so that it lands only where its peak fits.

    Where several kinds of cards will do, it asks for the share that the smallest of them needs: right on each, and more than
    it needs on the others.

    Args:
        asked: What the sweep says.
        nodes: All kinds of nodes that there may be.
        predicted: The trial's peak on a card; on the sweep's own if the node's is unknown. None where nobody can tell.

    Returns:
        None if its peak fits on none of the cards.
    """
    cards = list(dict.fromkeys(node.card for node in nodes if node.gpus > 0))
    if asked.gpus == 0 or not cards:
        return asked.most
    found = {card: predicted(card) for card in cards}
    eligible = _eligible(found)
    chosen = _chosen(nodes, eligible)
    if chosen is None:
        return None
    label, values = chosen
    gpus = max(_share(found[card], asked.max_per_gpu) for card in eligible) if asked.gpus is None else asked.gpus
    return Request(cpus=asked.cpus, gpus=gpus, label=label, values=values)


def inspecting_request(asked: Asked, nodes: Collection[Node]) -> Request:
    """For a look at model and data: on the largest card, by which trials are judged that may be too large."""
    cards = {node.card for node in nodes if node.gpus > 0} - {None}
    largest = max(cards, key=lambda card: card.memory_mib if card else 0.0, default=None)
    chosen = _chosen(nodes, [largest]) if asked.gpus != 0 and largest else None
    label, values = chosen or ("", ())
    return Request(cpus=asked.cpus, gpus=asked.most.gpus, label=label, values=values)


def _eligible(found: dict[Gpu | None, Prediction | None]) -> list[Gpu | None]:
    """Cards on which the trial surely fits; if there are none, those on which it may."""
    if len(found) > 1 and any(found.values()):  # an unknown card beside known ones may be too small
        found = {card: prediction for card, prediction in found.items() if card is not None}
    sure = [card for card, prediction in found.items() if not prediction or prediction.verdict is Verdict.FITS]
    return sure or [card for card, prediction in found.items() if prediction and prediction.verdict is not _TOO_LARGE]


_TOO_LARGE = Verdict.DOES_NOT_FIT


def _share(prediction: Prediction | None, max_per_gpu: int) -> float:
    return 1.0 if prediction is None else share_of(max(1, min(prediction.side_by_side(), max_per_gpu)))


def _chosen(nodes: Collection[Node], eligible: Collection[Gpu | None]) -> tuple[str, tuple[str, ...]] | None:
    """(label, values) that only nodes with these cards have, for as many GPUs as one label reaches; empty if all have them."""
    with_gpus = [node for node in nodes if node.gpus > 0]
    good = [node for node in with_gpus if node.card in eligible]
    bad = [node for node in with_gpus if node.card not in eligible]
    if good and not bad:
        return "", ()
    reached = {label: _values(label, good) - _values(label, bad) for label in (CARD_LABEL, TYPE_LABEL)}
    label = max(reached, key=lambda one: _gpus_with(one, reached[one], good))
    return (label, tuple(sorted(reached[label]))) if reached[label] else None


def _values(label: str, nodes: Iterable[Node]) -> set[str]:
    return {value for node in nodes for name, value in node.labels if name == label}


def _gpus_with(label: str, values: set[str], nodes: Iterable[Node]) -> float:
    return sum(node.gpus * node.count for node in nodes if dict(node.labels).get(label) in values)


def missing_text(request: Request, nodes: Collection[Node]) -> str:
    """What no node has of what is asked for, and what there is."""
    return f"{'; '.join(_missing(request, nodes))}; nodes: {nodes_text(nodes)}"


def _missing(request: Request, nodes: Collection[Node]) -> Iterator[str]:
    labelled = [node for node in nodes if not request.label or dict(node.labels).get(request.label) in request.values]
    if not labelled:
        yield f"missing: a node whose label {request.label} is {' or '.join(request.values) or 'set'}"
        return
    cpus, gpus = max(node.cpus for node in labelled), max(node.gpus for node in labelled)
    if cpus < request.cpus:
        yield f"missing: {request.cpus:g} CPU on one node, the most there is {cpus:g}"
    if gpus < request.gpus:
        yield f"missing: {request.gpus:g} GPU on one node, the most there is {gpus:g}"
    if cpus >= request.cpus and gpus >= request.gpus:
        yield "missing: both on the same node"


def nodes_text(nodes: Iterable[Node]) -> str:
    """What there is, and what may be started."""
    counted: Counter[tuple[str, bool]] = Counter()
    for node in nodes:
        counted[_node_text(node), node.is_alive] += node.count
    alive = [f"{count} x {text}" for (text, is_alive), count in counted.items() if is_alive]
    others = [f"up to {count} x {text}" for (text, is_alive), count in counted.items() if not is_alive]
    parts = [*alive, f"the autoscaler may start {', '.join(others)}"] if others else alive
    return ", ".join(parts) or "none"


def _node_text(node: Node) -> str:
    text = f"{node.cpus:g} CPU and {node.gpus:g} GPU"
    if node.gpus == 0:
        return text
    kind = dict(node.labels).get(TYPE_LABEL, "")
    return f"{text} ({node.card.name if node.card else kind or 'card unknown'})"
