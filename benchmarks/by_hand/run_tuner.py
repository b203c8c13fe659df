"""`run_tuner.py SWEEP_FILE OUT key=value ...`: what `tuner run` does, with a stopwatch and without the live view."""

from __future__ import annotations

import sys

from tuner import sweep

if __name__ == "__main__":
    file, out, *overrides = sys.argv[1:]
    sweep.run(file, out=out, overrides=overrides, worker="timed_worker:Worker")
