"""A plan as files. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.planning.picture import draw_plan
from tuner.planning.text import plan_text

if TYPE_CHECKING:
    from tuner.planning import Plan, Planned


def write_plan(plan: Plan, folder: Path, *, price: float | None = None) -> None:
    """Write plan.txt, plan.json and plan.png into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.txt").write_text(plan_text(plan, is_explained=True, price=price) + "\n", encoding="utf-8")
    document = {
        "name": plan.name,
        "gpu": dataclasses.asdict(plan.gpu),
        "settings": dataclasses.asdict(plan.workload),
        "num_params": plan.model.num_params,
        "num_steps": plan.num_steps,
        "step_s": plan.step_s,
        "gpu_hours": plan.hours,
        "corners": [_as_json(one) for one in plan.corners],
        "samples": [_as_json(one) for one in plan.samples],
    }
    (folder / "plan.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draw_plan(plan, folder / "plan.png")


def _as_json(planned: Planned) -> dict[str, Any]:
    found = planned.prediction
    return {
        "label": planned.label,
        "lora": dataclasses.asdict(planned.lora),
        "trainable_params": planned.trainable_params,
        **dataclasses.asdict(found),
        "parts": dict(found.parts),
        "phases": dict(found.phases),
        "verdict": found.verdict,
        "side_by_side": found.side_by_side(),
        "in_one_worker": max(0, found.together()),
    }
