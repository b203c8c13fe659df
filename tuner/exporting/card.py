"""The model card beside an export, and the code that uses it. Pure text; runs on the driver."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from tuner import metric_text
from tuner.exporting.engines import Adapter, Verdict, gguf_verdicts, merged_verdicts, verdicts
from tuner.forms import Form
from tuner.front import has_begun
from tuner.lora import Bias, Init
from tuner.report.findings.held_out import held_out_of
from tuner.report.findings.intervals import held_out_estimate, validation_estimate
from tuner.report.markdown import escaped
from tuner.trial import Metric, TrialSpec, param_text

if TYPE_CHECKING:
    from tuner.forms import Checked, Request
    from tuner.report.findings.intervals import Estimate
    from tuner.sweep import Sweep
    from tuner.trial import ParamValue, TrialRecord

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
A, PREFIX = ".lora_A.weight", "base_model.model."


def model_card(sweep: Sweep, record: TrialRecord, pick: str, request: Request, checked: Checked) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        sweep: Where the adapter comes from.
        record: Its trial, finished.
        pick: The rule that chose it.
        request: What was made, in a folder that holds it already.
        checked: What was found when it was used.
    """
    last, metric = record.last, sweep.config.metric
    assert last is not None  # noqa: S101 -- trials on the front have reported
    held_out = held_out_of(sweep.records).get(record.number)
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            config=sweep.config,
            inspection=sweep.inspection,
            record=record,
            metrics=last,
            metric=metric,
            metric_name=metric_text.name(metric),
            is_maximized=metric.is_maximized,
            validation=_estimate_text(metric, validation_estimate(metric, last)),
            test=_estimate_text(metric, held_out_estimate(metric, held_out)) if held_out else "",
            held_out=held_out,
            others=[
                (metric_text.name(Metric(name)), metric_text.text(Metric(name), value)) for name, value in last.others
            ],
            is_classified=sweep.config.training.task == "classification",
            choices=_choices(record.spec),
            num_trials=sum(known.spec.is_searched and has_begun(known) for known in sweep.records),
            pick=pick,
            request=request,
            form=request.form,
            Form=Form,
            checked=checked,
            score=metric_text.text(metric, checked.score),
            trained_score=metric_text.text(metric, checked.trained_score),
            verdicts=_verdicts(request),
            code=inference_code(sweep, request) if request.form is not Form.GGUF else "",
            version=metadata.version("tuner"),
        )
    )


def inference_code(sweep: Sweep, request: Request) -> str:
    """A program of a few lines that uses the export, to be run in its folder."""
    is_classified = sweep.config.training.task == "classification"
    return (
        _environment()
        .get_template("inference.py.j2")
        .render(
            is_classified=is_classified,
            is_merged=request.form is Form.MERGED,
            base=sweep.config.model.name,
            system=sweep.config.data.system,
            uses_template=sweep.config.data.chat_template != "never",
            labels=list(sweep.inspection.labels),
        )
    )


def adapter_of(folder: Path) -> Adapter:
    """What an adapter's files say, for engines to be judged by; reads headers alone."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with (folder / TENSORS).open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    ranks = {name.removeprefix(PREFIX).removesuffix(A): shape[0] for name, shape in shapes.items() if name.endswith(A)}
    others = frozenset(name for name in shapes if ".lora_" not in name)
    return Adapter(config=config, ranks=ranks, others=others)


def _verdicts(request: Request) -> tuple[Verdict, ...]:
    match request.form:
        case Form.GGUF:
            return gguf_verdicts()
        case Form.MERGED:
            return merged_verdicts()
        case _:
            return verdicts(adapter_of(Path(request.folder)))


def _estimate_text(metric: Metric, estimate: Estimate) -> str:
    span = metric_text.span(metric, estimate.low, estimate.high)
    return f"{metric_text.text(metric, estimate.value)} (95% interval {span}, {estimate.num_examples:,} examples)"


def _environment() -> jinja2.Environment:
    built = jinja2.Environment(
        loader=jinja2.PackageLoader("tuner.exporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- Markdown and Python, not HTML; filters escape for these
    )
    built.filters |= {"escaped": escaped, "code": _code}
    return built


def _code(text: str) -> str:
    """Text that stays within the back-quotes around it, on its line."""
    return " ".join(text.replace("`", "'").split())


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
