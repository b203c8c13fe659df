"""ReportData -> summary.json: every number that the page shows, for programs. Pure; runs on the driver."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tuner.front import GIB
from tuner.report import answers, foretold, reproduce
from tuner.report.findings.intervals import Estimate, held_out_estimate
from tuner.report.findings.ranks import heat_of
from tuner.report.rows import Row
from tuner.report.settings import settings
from tuner.report.summary_values import (
    VERSION,
    Answer,
    AtRung,
    AuditSummary,
    Cost,
    Data,
    Heat,
    Pair,
    Predicted,
    RankPoint,
    Ranks,
    Steps,
    Summary,
    Trial,
)
from tuner.trial import StopReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuner.report.data import ReportData
    from tuner.report.findings.audit import Audit

SUMMARY = TypeAdapter(Summary)


def summary_json(data: ReportData) -> str:
    """The sweep in numbers; the same bytes for the same data."""
    return SUMMARY.dump_json(build_summary(data), indent=1).decode() + "\n"


def schema() -> dict[str, Any]:
    """JSON schema of summary.json."""
    return SUMMARY.json_schema(mode="serialization")


def build_summary(data: ReportData) -> Summary:
    """Gather what the page shows."""
    counts = Counter(row.stop for row in data.trials)
    found = data.inspection
    return Summary(
        version=VERSION,
        name=data.config.name,
        tuner_version=data.version,
        metric=data.metric,
        objectives=tuple(objective.value for objective in data.objectives),
        headline=answers.headline(data),
        states=data.num_by_state,
        steps=Steps(spent=data.budget.steps, without_pruning=data.budget.steps_without_pruning),
        train_s=round(data.budget.train_s, 3),
        num_begun=data.num_begun,
        beside=Cost(steps=data.baseline_budget.steps, train_s=round(data.baseline_budget.train_s, 3)),
        front=tuple(row.number for row in data.front),
        picks={pick.rule: pick.row.number for pick in data.picks},
        answers=tuple(_answers(data)),
        comparisons=tuple(
            Pair(one=pair.one.number, other=pair.other.number, gap=pair.gap, is_clear=pair.gap.is_clear)
            for pair in answers.comparisons(data)
        ),
        flattery=data.flattery,
        confirmations=data.confirmations,
        diagnoses=data.diagnoses,
        importances=data.importances,
        mattered=tuple(value.name for value in data.importances.values if value.matters) if data.importances else (),
        ranks=_ranks(data),
        heat=tuple(_heat(data)),
        growth=data.growth,
        is_more_likely_to_help=data.growth.is_likely_to_help if data.growth else None,
        timeline=data.timeline,
        ties=dict(data.ties),
        stops={reason: counts[reason] for reason in StopReason},
        audit=_audit(data.audit) if data.audit else None,
        memory_kind=data.memory_kind,
        prediction_errors=tuple(foretold.measured_errors(data.trials)),
        data=Data(
            num_train=found.num_train,
            num_validation=found.num_validation,
            num_test=found.num_test,
            majority_share=found.majority_share,
            fingerprint=found.data_fingerprint,
        ),
        settings=dict(settings(data)),
        reproduction=dict(reproduce.facts(data)),
        trials=tuple(_trial(data, row) for row in data.rows),
    )


def _answers(data: ReportData) -> Iterator[Answer]:
    for card in answers.build_cards(data):
        last, num = card.row.last, data.inspection.model.num_params
        assert last is not None  # noqa: S101 -- trials on the front have reported
        yield Answer(
            number=card.row.number,
            rules=tuple(pick.rule for pick in data.picks if pick.row.number == card.row.number),
            validation=card.validation,
            test=card.test,
            trainable_params=last.trainable_params,
            share_of_model=last.trainable_params / num if num else None,
            peak_memory_gib=round(last.peak_memory_bytes / GIB, 6),
            memory_kind=last.memory_kind,
            adapter_bytes=answers.adapter_bytes(card.row, data.inspection.model.head_params),
            train_s=round(last.train_s, 3),
            command=card.command,
        )


def _trial(data: ReportData, row: Row) -> Trial:
    last, spec, held_out = row.last, row.record.spec, _held_out(data, row)
    return Trial(
        number=row.number,
        state=row.record.state,
        standing=row.standing,
        seed=spec.seed,
        learning_rate=row.learning_rate,
        params=row.params,
        baseline=row.baseline,
        audits=row.audits,
        confirms=spec.confirms,
        reason=row.reason,
        stop=row.stop,
        trainable_params=last.trainable_params if last else None,
        peak_memory_gib=round(last.peak_memory_bytes / GIB, 6) if last else None,
        train_s=round(last.train_s, 3) if last else None,
        mean_rank=data.mean_ranks.get(row.number),
        others={name: value for name, value in last.others if math.isfinite(value)} if last else {},
        curve=tuple(
            AtRung(
                steps=at.steps,
                value=_finite(at.accuracy),
                standard_error=_finite(at.standard_error),
                loss=_finite(at.loss),
                train_loss=_finite(at.train_loss),
            )
            for at in row.record.curve
        ),
        test=held_out,
        predicted=_predicted(row),
    )


def _held_out(data: ReportData, row: Row) -> Estimate | None:
    found = data.tests.get(row.number) or (row.last.held_out if row.last else None)
    return held_out_estimate(data.metric, found) if found else None


def _predicted(row: Row) -> Predicted | None:
    found = row.record.prediction
    if found is None:
        return None
    allocated, reserved = round(found.allocated_bytes / GIB, 6), round(found.reserved_bytes / GIB, 6)
    return Predicted(allocated_gib=allocated, reserved_gib=reserved, phase=found.phase, verdict=found.verdict)


def _ranks(data: ReportData) -> Ranks | None:
    effect = data.rank_effect
    if effect is None:
        return None
    points = (
        RankPoint(scale=band.scale, rank=at.rank, number=at.record.number, num_trials=at.num_trials)
        for band in effect.bands
        for at in band.best
    )
    found = effect.plateau
    return Ranks(
        points=tuple(points),
        plateau_rank=found.rank if found else None,
        largest_gain=found.largest_gain if found else None,
    )


def _heat(data: ReportData) -> Iterator[Heat]:
    numbers = [row.number for row in data.front]
    heat = heat_of((row.record for row in data.front), data.inspection.model.layers) if numbers else {}
    for (module, band), ranks in heat.items():
        yield Heat(module=module, band=band, ranks=dict(zip(numbers, ranks, strict=True)))


def _audit(audit: Audit) -> AuditSummary:
    return AuditSummary(
        num_stopped=audit.num_stopped,
        num_audited=audit.num_audited,
        num_failed=audit.num_failed,
        is_census=audit.is_census,
        steps=audit.num_steps,
        on_front=tuple(trial.stopped.number for trial in audit.trials if trial.is_on_front),
        share_on_front=audit.share,
        share_on_front_interval=audit.share_interval,
        num_lost=audit.num_lost,
        num_lost_interval=audit.num_lost_interval,
        hypervolume_loss=audit.hypervolume_loss,
        mean_hypervolume_loss=audit.mean_loss,
        mean_hypervolume_loss_interval=audit.mean_loss_interval,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
