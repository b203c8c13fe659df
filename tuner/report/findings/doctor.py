"""All diagnoses of a sweep, in the order in which they are told. Pure; runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.report.findings import diagnoses, training

if TYPE_CHECKING:
    from tuner.report.findings.diagnoses import Diagnosis, Seen

CHECKS = (
    diagnoses.nothing_learned,
    training.unstable,
    training.under_trained,
    training.overfitting,
    diagnoses.at_edge,
    diagnoses.flattered,
    diagnoses.moved_by_seeds,
    diagnoses.too_few_examples,
    diagnoses.faults,
)


def diagnose(seen: Seen) -> tuple[Diagnosis, ...]:
    """What may be wrong; empty where nothing was found."""
    return tuple(found for check in CHECKS for found in check(seen))
