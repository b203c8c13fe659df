"""What the study's verbs cost with a journal and with PostgreSQL: `python benchmarks/storage/verbs.py [ADDRESS]`. Run by hand.

Without an address a PostgreSQL server is started on this machine, from Debian's binaries. Points are drawn at random, and no
worker computes anything, so that nothing but the study is timed. Writes results.md beside it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.postgres import Server, find_binaries
from tests.sweeps import small_config
from tuner.backends import hand_in
from tuner.study import create_study
from tuner.trial import Decision
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.config import SweepConfig

NUM_TRIALS = 300
RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    """Time both and write the table."""
    with database(sys.argv[1:]) as address:
        rows = [(name, timed(storage, name)) for name, storage in (("journal", "journal"), ("PostgreSQL", address))]
    setting = f"{NUM_TRIALS} trials of 3 rungs each; {os.cpu_count()} cores, {platform.system()}"
    lines = [
        f"Milliseconds of a call, median (95th percentile), over {setting}, server on the same machine, both synced to disk.",
        "",
        "| study.storage | ask | report | tell | whole sweep in s |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {cells} |" for name, cells in rows),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


@contextlib.contextmanager
def database(addresses: list[str]) -> Iterator[str]:
    """The one named, or one that ends with this script."""
    if addresses:
        yield addresses[0]
        return
    binaries = find_binaries()
    assert binaries, "no PostgreSQL on this machine; name one"
    server = Server(binaries)
    os.environ["PGPASSWORD"] = server.password
    yield server.address
    server.remove()


def timed(storage: str, name: str) -> str:
    """The cells of a row."""
    changes = {
        "name": f"verbs-{name}-{time.time_ns()}",
        "study.storage": storage,
        "search.num_trials": NUM_TRIALS,
        "pruning.method": "none",
    }
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), changes)
        begun_s = time.perf_counter()
        seconds = run(config, Path(folder))
        whole_s = time.perf_counter() - begun_s
    cells = [
        f"{1e3 * statistics.median(s):.1f} ({1e3 * statistics.quantiles(s, n=20)[-1]:.1f})" for s in seconds.values()
    ]
    return " | ".join([*cells, f"{whole_s:.1f}"])


def run(config: SweepConfig, folder: Path) -> dict[str, list[float]]:
    """Seconds of each call of each verb."""
    worker = SyntheticWorker(config, None)
    study = create_study(folder / "study.journal", config, worker.inspect())
    clock = _Clock(study)
    while (spec := clock.ask()) is not None:
        worker.start(spec)
        while hand_in(clock, spec.number, worker.advance()) is Decision.CONTINUE:
            pass
    study.close()
    return {verb: clock.seconds[verb] for verb in ("ask", "report", "tell")}


class _Clock:
    """Times each verb of a study."""

    def __init__(self, study: object) -> None:
        self._study = study
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, verb: str) -> Any:  # noqa: ANN401 -- whatever the study has under that name
        def call(*values: object) -> object:
            begun_s = time.perf_counter()
            try:
                return getattr(self._study, verb)(*values)
            finally:
                self.seconds[verb].append(time.perf_counter() - begun_s)

        return call


if __name__ == "__main__":
    main()
