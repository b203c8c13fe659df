"""Has a process of its own make and check an export, so that nothing of this one is in it. Runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, TypeAdapter

from tuner.errors import ExportError
from tuner.exporting.asking import answer_of
from tuner.forms import Checked, Request

if TYPE_CHECKING:
    from tuner.config import SweepConfig

MODULE = "tuner.worker.exporting"
_REQUESTS = TypeAdapter(Request)


class Answered(BaseModel):
    """What the process says: one of the two is set."""

    checked: Checked | None = None
    problem: str = ""


def made(config: SweepConfig, request: Request) -> Checked:
    """Make a form of an adapter, in `request.folder`.

    Raises:
        ExportError: The adapter has no such form or does not load, or the process has died.
    """
    asked = f'{{"config":{config.model_dump_json()},"request":{_REQUESTS.dump_json(request).decode()}}}'
    answer = Answered.model_validate_json(answer_of(MODULE, asked))
    if answer.checked is None:
        msg = f"can't be exported as {request.form}: {answer.problem}"
        raise ExportError(msg)
    return answer.checked
