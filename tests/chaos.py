"""Sweeps whose workers, nodes, drivers and heads are killed at random moments, held against one that nobody disturbs."""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.drivers import Driver, results
from tuner import sweep
from tuner.errors import FolderError
from tuner.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    from ray._private.node import Node

STEPPING = "tests.workers:SteppingWorker"
LONGEST_WAIT_S = 4.0
"""Between two kills; from the start of a driver it is also the time that it takes to begin a trial."""
QUICK = {
    "RAY_AUTH_MODE": "disabled",  # one process that starts a second cluster gives it another token than its drivers have
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long nodes and drivers wait for a head that is gone
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
}


class Victim(enum.StrEnum):
    """What is killed, by SIGKILL."""

    WORKER = "worker process"
    NODE = "node (raylet)"
    DRIVER = "driver"
    HEAD = "head with everything on it but the driver"
    HEAD_AND_DRIVER = "head and driver"


@dataclass
class Toll:
    """What a storm has cost."""

    kills: Counter[Victim] = field(default_factory=Counter)
    num_finished: int = 0
    """Trials that ended COMPLETE."""
    num_lost: int = 0
    """Trials that were COMPLETE before a kill and not after it."""
    num_twice: int = 0
    """Rungs, the last among them, that were kept more than once."""
    num_drivers: int = 0
    """Starts and resumes."""
    differing: tuple[str, ...] = ()
    """Records that are not those of the undisturbed sweep, each beside what it should be."""
    wall_s: float = 0.0


class SmallCluster:
    """A head without cores, and two nodes of one core each, on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: list[Node] = [self._cluster.add_node(num_cpus=1) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_worker(self, draw: random.Random) -> bool:
        """Whether there was one."""
        alive = [pid for node in self._nodes for pid in _workers(node)]
        if alive:
            _kill(draw.choice(alive))
        return bool(alive)

    def replace_node(self, draw: random.Random) -> None:
        """Kill one; another comes in its place."""
        node = self._nodes.pop(draw.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def kill(self) -> None:
        """The head, and then all that is left."""
        for node in [*filter(None, [self._cluster.head_node]), *self._nodes]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextlib.contextmanager
def quick_to_notice() -> Iterator[None]:
    """Ray's patience with what is gone, shortened for all that is started inside."""
    former = dict(os.environ)
    os.environ.update(QUICK)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


class Storm:
    """One sweep and what befalls it.

    Args:
        file: Of the sweep.
        out: Its folder; is made.
        worker: Dotted path.
        draw: Chooses moments and victims.
    """

    def __init__(self, file: Path, out: Path, worker: str, draw: random.Random) -> None:
        self.toll = Toll()
        self._file, self._out, self._worker, self._draw = file, out, worker, draw
        self._cluster = SmallCluster()
        self._driver = self._started()

    def rage(self, victims: Sequence[Victim]) -> Toll:
        """Kill one after another while the sweep lasts, then let it end."""
        begun_s, left = time.monotonic(), list(victims)
        try:
            while self._lasts(self._draw.uniform(0.0, LONGEST_WAIT_S) if left else None):
                before = _complete(self._out)
                if left and self._kill(left[0]):
                    self.toll.kills[left.pop(0)] += 1
                self.toll.num_lost += len(before - _complete(self._out))
        finally:
            self._driver.kill()
            self._cluster.kill()
        self.toll.wall_s = time.monotonic() - begun_s
        self.toll.num_twice = sum(num - 1 for num in _reached(self._out).values())
        return self.toll

    def _lasts(self, wait_s: float | None) -> bool:
        """Wait, for a driver that has nothing more to fear to its end; one that went with its cluster is started anew."""
        code = self._driver.ended_within(wait_s)
        if code == 0:
            return False
        if code is not None:
            assert self._is_orphaned, self._driver.text
            self._driver = self._started()
        return True

    def _started(self) -> Driver:
        self._is_orphaned = False
        self.toll.num_drivers += 1
        if not (self._out / "study.journal").exists():
            shutil.rmtree(self._out, ignore_errors=True)  # as tuner asks for, where it was killed before it had begun
            words = ["run", str(self._file), "--out", str(self._out)]
        else:
            words = ["resume", str(self._out)]
        environment = {"RAY_ADDRESS": self._cluster.address}
        return Driver(self._worker, *words, module="tests.with_worker", environment=environment)

    def _kill(self, victim: Victim) -> bool:
        match victim:
            case Victim.WORKER:
                return self._cluster.kill_worker(self._draw)
            case Victim.NODE:
                self._cluster.replace_node(self._draw)
                self._is_orphaned = True  # it may be the node that the driver came in by, which then ends too
            case Victim.DRIVER:
                self._driver.kill()
                self._is_orphaned = True
            case Victim.HEAD | Victim.HEAD_AND_DRIVER:
                if victim is Victim.HEAD_AND_DRIVER:
                    self._driver.kill()
                self._cluster.kill()
                self._driver.ended()  # a driver does not outlive its cluster
                self._cluster = SmallCluster()
                self._is_orphaned = True
        return True


def compare(storm_out: Path, calm: Sequence[TrialRecord], toll: Toll) -> None:
    """Hold the sweep's records against those of the undisturbed one."""
    records = sweep.load(storm_out).records
    toll.num_finished = sum(record.state is TrialState.COMPLETE for record in records)
    pairs = itertools.zip_longest(results(records), results(calm))
    toll.differing = tuple(f"{one}\n  undisturbed: {other}" for one, other in pairs if one != other)


def _complete(out: Path) -> set[int]:
    try:
        records = sweep.load(out).records
    except FolderError:
        return set()
    return {record.number for record in records if record.state is TrialState.COMPLETE}


def _reached(out: Path) -> Counter[str]:
    """(trial, step) -> how often it was kept."""
    noted = out.parent / "reached"
    if noted.exists():
        return Counter(noted.read_text(encoding="utf-8").splitlines())
    logs = (file.read_text(encoding="utf-8") for file in (out / "logs").glob("worker-*.log"))
    return Counter(line.split(" ", 2)[2] for log in logs for line in log.splitlines() if " reached step " in line)


def _workers(node: Node) -> list[int]:
    """Processes of a node that train or are about to; its agents are parts of the raylet, which ends with them."""
    raylets = [info.process.pid for info in node.all_processes.get("raylet", [])]
    names = {pid: _name(pid) for raylet in raylets for pid in _children(raylet)}
    return [pid for pid, name in names.items() if name.startswith("ray::") and "Agent" not in name]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """`python -m tests.chaos FILE OUT SEED VICTIM...`: one storm in a process of its own; prints what its kills cost.

    Ray ends a process that has joined a cluster, a while after a cluster that it has started is gone: no place for tests.
    """
    file, out, seed, *victims = sys.argv[1:]
    with quick_to_notice():
        toll = Storm(Path(file), Path(out), STEPPING, random.Random(int(seed))).rage([Victim[name] for name in victims])
    told = {"kills": sum(toll.kills.values()), "lost": toll.num_lost, "twice": toll.num_twice}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
