"""A program: a trial that is too large for the address space it is given, then one that is not, in the same process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tests.builders import make_lora, make_spec
from tests.sweeps import small_config
from tuner.trial import Metrics, Outcome
from tuner.worker.host import Worker

MIB = 2**20
ROOM_BYTES = 700 * MIB
"""Beyond what the process has when the base is loaded: enough for the small trial, too little for the large one."""


def main() -> None:
    """Print how the large trial ended, then the small one's reports."""
    worker = Worker(small_config(Path(sys.argv[1])), None)
    worker.start(make_spec(1, lora=make_lora(r=1)))
    worker.advance()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + ROOM_BYTES,) * 2)
    worker.start(make_spec(2, lora=make_lora(r=16384, target_modules=("all-linear",))))
    large = worker.advance()
    tell(large.reason.value if isinstance(large, Outcome) and large.reason else large)
    worker.start(make_spec(0, lora=make_lora(r=4), learning_rate=5e-3))
    steps = 0
    while steps < 8:
        result = worker.advance()
        assert isinstance(result, Metrics), result
        steps = result.steps
        tell(result.steps, result.accuracy, repr(result.loss))


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
