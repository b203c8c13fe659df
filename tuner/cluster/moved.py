"""Has a sweep folder's sweep file name the inputs where they lie now. Runs on the cluster, and where a sweep is fetched to.

The inputs travel with a job, and another session of Ray unpacks them elsewhere. `resume` itself makes sure that the data is
the same.

    python -m tuner.cluster.moved sweep.yaml FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tuner.errors import TunerError
from tuner.folder import SweepFolder
from tuner.sweep_file import load_sweep_file, write_sweep_file


def rename_inputs(sent: Path, folder: Path) -> None:
    """Give the sweep in a folder the paths of the sweep file that was sent; all else stays as it was.

    Raises:
        TunerError: One of them is no sweep.
    """
    sweep = SweepFolder(folder)
    sweep.require_sweep()
    now, begun = load_sweep_file(sent), load_sweep_file(sweep.sweep_file)
    model = begun.model.model_copy(update={"name": now.model.name, "config": now.model.config})
    data = begun.data.model_copy(update={"path": now.data.path})
    write_sweep_file(begun.model_copy(update={"model": model, "data": data}), sweep.sweep_file)


def main() -> None:
    """Rename, or say why not."""
    try:
        rename_inputs(Path(sys.argv[1]), Path(sys.argv[2]))
    except TunerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
