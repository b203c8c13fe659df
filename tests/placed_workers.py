"""Workers that tell where they are, and wait for each other, for tests of who is placed where."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuner.config import SweepConfig
    from tuner.trial import Result, TrialSpec


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """A trial's time on a worker."""

    number: int
    """The trial."""
    node: str
    """Ray's id."""
    gpus: str
    """Ids of its GPUs on that node."""
    process: int
    """The worker's."""
    begun_s: float
    ended_s: float

    @property
    def place(self) -> tuple[str, str]:
        """One card of the cluster, or one node where no card is used."""
        return self.node, self.gpus


class PlacedWorker(SyntheticWorker):
    """Writes down where and when it works on each trial, in `placed` beside the sweep's folder."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._last_rung = config.rungs[-1]
        self.notes = folder.parent / "placed" if folder else Path()
        self.number, self._begun_s = -1, 0.0

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self.notes.mkdir(exist_ok=True)
        self.number, self._begun_s = spec.number, time.time()
        (self.notes / f"{self.number}.present").write_text(json.dumps(self.place()))

    def advance(self) -> Result:
        result = super().advance()
        stay = Stay(
            number=self.number,
            node=self.place()[0],
            gpus=self.place()[1],
            process=os.getpid(),
            begun_s=self._begun_s,
            ended_s=time.time(),
        )
        with (self.notes / "stays.jsonl").open("a") as stream:
            stream.write(json.dumps(dataclasses.asdict(stay)) + "\n")
        return result

    def place(self) -> tuple[str, str]:
        import ray

        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def stays_in(folder: Path) -> list[Stay]:
    """What workers have written down."""
    return [Stay(**json.loads(line)) for line in (folder / "placed" / "stays.jsonl").read_text().splitlines()]


class MeetingWorker(PlacedWorker):
    """Goes on only once as many trials are present as the file `meeting` says: on its card, or on different nodes."""

    def advance(self) -> Result:
        num, _, where = (self.notes.parent / "meeting").read_text().partition(" ")
        name = "-".join(self.place()) if where == "card" else "nodes"
        met = self.notes / f"met-{name}"
        wait_for(lambda: met.exists() or self._num_present(where) >= int(num))
        met.touch()
        return super().advance()

    def _num_present(self, where: str) -> int:
        present = [tuple(json.loads(file.read_text() or "[]")) for file in self.notes.glob("*.present")]
        return present.count(self.place()) if where == "card" else len({place[0] for place in present if place})


class LaggingWorker(SyntheticWorker):
    """Works on trial 0 for as long as it takes the others to come to their end."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._num_others = config.search.num_trials - 1
        self._last = config.rungs[-1]
        self._ends = folder.parent / "ends" if folder else Path()
        self._number = -1

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._ends.mkdir(exist_ok=True)
        self._number = spec.number

    def advance(self) -> Result:
        if self._number == 0:
            wait_for(lambda: len(list(self._ends.iterdir())) >= self._num_others)
        result = super().advance()
        if getattr(result, "steps", 0) == self._last:
            (self._ends / str(self._number)).touch()
        return result


def wait_for(condition: Callable[[], bool], limit_s: float = 120) -> None:
    """Until it holds.

    Raises:
        TimeoutError: It does not come to hold.
    """
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("what this worker waits for did not happen")
        time.sleep(0.05)  # another process makes it true
