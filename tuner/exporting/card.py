"""The model card beside an exported adapter. Pure text; runs on the driver."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import jinja2

from tuner import metric_text
from tuner.front import has_begun
from tuner.lora import Bias, Init
from tuner.trial import Metric, TrialSpec, param_text

if TYPE_CHECKING:
    from tuner.sweep import Sweep
    from tuner.trial import ParamValue, TrialRecord


def model_card(sweep: Sweep, record: TrialRecord, pick: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        sweep: Where the adapter comes from.
        record: Its trial, finished.
        pick: The rule that chose it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tuner.exporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- Markdown, not HTML
    )
    metrics, metric = record.last, sweep.config.metric
    assert metrics is not None  # noqa: S101 -- trials on the front have reported
    return environment.get_template("card.md.j2").render(
        config=sweep.config,
        inspection=sweep.inspection,
        record=record,
        metrics=metrics,
        metric_name=metric_text.name(metric),
        is_maximized=metric.is_maximized,
        result=metric_text.text_with_error(metric, metrics.accuracy, metrics.standard_error),
        others=[_result(Metric(name), value) for name, value in metrics.others],
        is_classified=sweep.config.training.task == "classification",
        choices=_choices(record.spec),
        num_trials=sum(known.spec.is_searched and has_begun(known) for known in sweep.records),
        pick=pick,
        version=metadata.version("tuner"),
    )


def _result(metric: Metric, value: float) -> tuple[str, str]:
    return metric_text.name(metric), metric_text.text(metric, value)


def _choices(spec: TrialSpec) -> list[tuple[str, str]]:
    """(name, value) of what makes the trial: always the plain ones, the others where they are not the defaults."""
    lora = spec.lora
    assert lora is not None  # noqa: S101 -- only baselines have no adapter, and they are not exported
    plain: dict[str, ParamValue] = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "learning rate": spec.learning_rate,
        "target modules": ", ".join(lora.target_modules),
    }
    plain |= {f"rank of {target}": r for target, r in lora.rank_pattern}
    special: dict[str, tuple[ParamValue, ParamValue]] = {
        "use_rslora": (lora.use_rslora, False),
        "use_dora": (lora.use_dora, False),
        "init_lora_weights": (lora.init_lora_weights.value, Init.DEFAULT.value),
        "bias": (lora.bias.value, Bias.NONE.value),
        "weight decay": (spec.weight_decay, 0.0),
        "lora_plus_ratio": (spec.lora_plus_ratio, 1.0),
    }
    told = plain | {name: value for name, (value, default) in special.items() if value != default}
    return [(name, param_text(value)) for name, value in told.items()]
