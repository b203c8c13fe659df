"""Recorded curves as a world to search in: a proposed point becomes the nearest recorded configuration not tried before.

Every method is replayed on the same table through this one mapping, so that none gains by it. The table is finite: a search
that runs to its end has tried all that is in it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from tuner.pareto import hypervolume, non_dominated_mask
from tuner.space import searched_params
from tuner.sweep_file import load_sweep_file
from tuner.trial import Inspection, MemoryKind, Metric, Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tuner.config import SweepConfig
    from tuner.pareto import FloatArray
    from tuner.trial import ParamValue

HERE = Path(__file__).parent
LOG_SCALED = ("r", "lora_scale", "learning_rate", "rank_pattern.mlp")
WIDENED = 0.05
"""The hypervolume's box reaches this share of its width beyond the worst recorded value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One configuration as it was trained."""

    config: int
    """Its number in the table."""
    params: dict[str, ParamValue]
    """Searched parameters, those not sampled left out."""
    reports: tuple[Metrics, ...]
    """One per rung, rising; fewer than the rungs if it diverged."""


class Recording:
    """A task's curves from one training seed.

    Args:
        task: Names `TASK.yaml` and `curves/TASK.csv`.
        seed: Of training.
    """

    def __init__(self, task: str, seed: int = 0) -> None:
        self.task = task
        self.config: SweepConfig = load_sweep_file(HERE / f"{task}.yaml")
        found = TypeAdapter(Inspection).validate_json((HERE / "curves" / f"{task}.json").read_bytes())
        self.inspection = dataclasses.replace(found, num_test=0)  # what fronts score on test data was not recorded
        table = pd.read_csv(HERE / "curves" / f"{task}.csv")
        names = searched_params(self.config.search.space)
        groups = table[table["seed"] == seed].groupby("config", sort=True)
        self.curves = tuple(_curve(int(str(number)), rows, names) for number, rows in groups)
        self._points = np.array([[*self._encoded(curve.params)] for curve in self.curves])

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which every curve was scored."""
        return self.config.rungs

    @property
    def full_steps(self) -> int:
        """Optimizer steps of the whole table: what a sweep without stopping would train."""
        return sum(curve.reports[-1].steps for curve in self.curves)

    def nearest(self, params: Mapping[str, ParamValue], used: Iterable[int]) -> int:
        """Index of the curve nearest to a point among those not used; the first of equals.

        Raises:
            ValueError: All are used.
        """
        free = [index for index in range(len(self.curves)) if index not in set(used)]
        if not free:
            msg = "all recorded configurations are used"
            raise ValueError(msg)
        point = np.array([*self._encoded(params)])
        return free[int(np.argmin(np.abs(self._points[free] - point).sum(axis=1)))]

    def losses(self, reports: Iterable[Metrics]) -> FloatArray:
        """`(num_reports, 3)`: error, log10 of the parameters, GiB; lower is better."""
        metric = Metric(self.config.metric)
        rows = [
            (metric.loss(report.accuracy), math.log10(report.trainable_params), report.peak_memory_bytes / 2**30)
            for report in reports
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 3)

    @functools.cached_property
    def _final(self) -> FloatArray:
        return self.losses(curve.reports[-1] for curve in self.finished)

    @functools.cached_property
    def finished(self) -> tuple[Curve, ...]:
        """The curves that reached the last rung."""
        return tuple(curve for curve in self.curves if curve.reports[-1].steps == self.rungs[-1])

    @functools.cached_property
    def front(self) -> frozenset[int]:
        """Configurations on the front of the whole table."""
        return self.front_of([curve.config for curve in self.finished])

    def front_of(self, configs: Iterable[int]) -> frozenset[int]:
        """Those of some finished configurations that none of them dominates."""
        among = set(configs)
        curves = [curve for curve in self.finished if curve.config in among]
        mask = non_dominated_mask(self.losses(curve.reports[-1] for curve in curves))
        return frozenset(curve.config for curve, is_on in zip(curves, mask, strict=True) if is_on)

    def share_of_hypervolume(self, reports: Iterable[Metrics]) -> float:
        """Hypervolume of some finished trials over that of the whole table, in [0, 1]."""
        low, high = self._final.min(axis=0), self._final.max(axis=0)
        high = high + WIDENED * (high - low)
        return hypervolume((self.losses(reports) - low) / (high - low), np.ones(3)) / self._full

    @functools.cached_property
    def _full(self) -> float:
        low, high = self._final.min(axis=0), self._final.max(axis=0)
        high = high + WIDENED * (high - low)
        return hypervolume((self._final - low) / (high - low), np.ones(3))

    def _encoded(self, params: Mapping[str, ParamValue]) -> Iterable[float]:
        """Each parameter in [0, 1] over what was recorded; a conditional one that is missing lies beside all values."""
        for name in searched_params(self.config.search.space):
            value = params.get(name)
            known = [curve.params[name] for curve in self.curves if name in curve.params]
            if isinstance(known[0], str):
                yield from (float(value == option) for option in sorted({str(option) for option in known}))
                continue
            numbers = [_scaled(name, float(option)) for option in known]
            width = max(numbers) - min(numbers) or 1.0
            yield -1.0 if value is None else (_scaled(name, float(value)) - min(numbers)) / width


def _scaled(name: str, value: float) -> float:
    return math.log(value) if name in LOG_SCALED else value


def _curve(number: int, rows: pd.DataFrame, names: tuple[str, ...]) -> Curve:
    first = rows.iloc[0]
    params = {name: first[name] for name in names if not pd.isna(first[name])}
    reports = tuple(_report(row) for _, row in rows.sort_values("steps").iterrows())
    return Curve(config=number, params=params, reports=reports)


def _report(row: pd.Series) -> Metrics:
    return Metrics(
        steps=int(row["steps"]),
        tokens=int(row["tokens"]),
        train_s=float(row["train_s"]),
        accuracy=float(row["accuracy"]),
        standard_error=float(row["standard_error"]),
        loss=float(row["loss"]),
        num_validation=int(row["num_validation"]),
        trainable_params=int(row["trainable_params"]),
        peak_memory_bytes=int(row["peak_memory_bytes"]),
        memory_kind=MemoryKind.CPU_ALLOCATED,
    )
