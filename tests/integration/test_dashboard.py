"""optuna-dashboard opens a sweep's journal as it is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse

import optuna_dashboard
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.sweeps import ROOT
from tuner import sweep


def get(app: Any, path: str) -> Any:
    """What the dashboard's own page asks for."""
    status: list[str] = []

    def start(line: str, headers: list[tuple[str, str]], error: object = None) -> Any:
        status.append(line)

    started: StartResponse = start
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    body = b"".join(app(environ, started))
    assert status[-1] == "200 OK", body
    return json.loads(body)


def test_the_dashboard_shows_every_trial_of_the_search_with_its_objectives(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "reports" / "example", tmp_path / "example")
    swept = sweep.load(tmp_path / "example")
    app = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(str(tmp_path / "example" / "study.journal"))))

    listed = {study["study_name"]: study["study_id"] for study in get(app, "/api/studies")["study_summaries"]}
    shown = get(app, f"/api/studies/{listed[swept.config.name]}")

    assert shown["objective_names"] == [objective.value for objective in swept.objectives]
    values = {trial["number"]: trial["values"] for trial in shown["trials"] if trial["state"] == "Complete"}
    assert set(values) == {record.number for record in swept.trials if record.state == "COMPLETE"}
    for record in swept.front:
        assert record.last
        assert values[record.number] == [goal.of(record.last) for goal in swept.objectives]
