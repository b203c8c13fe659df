"""Where a sweep runs and is kept, as its file says: the `resources` and `study` sections. Driver and worker read it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tuner.addresses import JOURNAL, files_address, study_address
from tuner.dimensions import Section, wrong
from tuner.space_config import NotNegative, Positive


def _gpus(raw: object) -> object:
    """Refuse what is no number of GPUs in one sentence; pydantic would say one for each member of the union."""
    is_number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if raw == "auto" or (is_number and 0 <= float(raw) < math.inf):  # type: ignore[arg-type]  # a number
        return raw
    raise wrong("must be auto or a number of at least 0, got {got}", got=repr(raw))


def _trials(raw: object) -> object:
    """The same for a number of trials."""
    if raw == "auto" or (isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1):
        return raw
    raise wrong("must be auto or a whole number of at least 1, got {got}", got=repr(raw))


class ResourcesConfig(Section):
    """What a trial gets, and how trials are placed."""

    backend: Literal["ray", "local"] = "ray"
    """`ray` runs trials side by side on this machine or a cluster, `local` one after another in this process."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of a trial; fractions share a core."""
    gpus_per_trial: Annotated[Literal["auto"] | NotNegative, BeforeValidator(_gpus)] = 0.0
    """GPUs of a trial; fractions share a card, above 1 whole cards only. `auto`: as many trials share a card as fit on it by
    their predicted memory; where nothing is predicted each gets a whole card."""
    max_trials_per_gpu: Annotated[int, Field(ge=1)] = 4
    """With `gpus_per_trial: auto`: most trials on a card, however small they are; they take turns in computing."""
    trials_per_worker: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_trials)] = 1
    """Trials that share a worker's base model and make their steps together; they share what one trial gets of CPU and GPU.
    `auto`: each worker measures how many are fastest; see [trials together](together.md)."""
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    """Most trials at a time; as many as the cluster holds by default."""
    node_wait_s: Positive = 600.0
    """Seconds that the sweep waits when all its trials need a node that has left the cluster; then it ends, to be resumed."""
    memory_limit_gib: Positive | None = None
    """What a trial may need at its peak; one that needs more is recorded as infeasible. No limit by default."""
    max_worker_restarts: Annotated[int, Field(ge=0)] = 2
    """How often a trial goes on from its last rung after its worker was lost."""
    heartbeat_limit_s: Positive = 1800.0
    """With `backend: ray`: a trial that makes no step and scores no batch for so long is taken to hang. Its process is ended, and
    another goes on from the last rung; at the second time the trial fails."""
    storage: Annotated[str, AfterValidator(files_address)] | None = None
    """Where checkpoints and adapters go if the nodes share no file system: `s3://bucket/folder`, or another that pyarrow reaches;
    the sweep's folder by default; see [storage](storage.md)."""
    max_failures_in_a_row: Annotated[int, Field(ge=1)] = 5
    """The sweep ends when this many trials fail one after another."""

    @property
    def uses_gpu(self) -> bool:
        """Whether trials train on a GPU."""
        return self.gpus_per_trial == "auto" or self.gpus_per_trial > 0


class StudyConfig(Section):
    """Where the sweep's trials are written down."""

    storage: Annotated[str, AfterValidator(study_address)] = JOURNAL
    """`journal` is a file in the sweep's folder; `postgresql://user@host:port/database` a database, its password in PGPASSWORD or
    ~/.pgpass; see [storage](storage.md)."""
