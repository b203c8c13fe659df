"""`python -m tests.with_worker WORKER run x.yaml ...`: the command line with another worker, in a process of its own.

The command line has no option for it on purpose.
"""

from __future__ import annotations

import sys

from tuner import cli, sweep

if __name__ == "__main__":
    worker = sys.argv.pop(1)
    for verb in (sweep.run, sweep.resume):
        assert verb.__kwdefaults__
        verb.__kwdefaults__["worker"] = worker
    cli.main()
