"""Exports go to a hub as they were checked: held against a small hub on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import ExportError, FolderError
from tuner.exporting import CHECKSUMS, checksums
from tuner.exporting.push import push

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Takes what huggingface_hub sends, over its HTTP API."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.message = ""
        self.refuses = False


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.refuses or self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(403, {"error": "not yours"})
        elif self.path == "/api/repos/create":
            self.server.repos.append(json.loads(body))
            self._answer(200, {"url": f"http://127.0.0.1/me/{json.loads(body)['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self._answer(200, {"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.server.message = line["value"]["summary"]
            else:
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._answer(
            200, {"commitUrl": "http://127.0.0.1/me/mine/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        )

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the signature is the library's
        """No word on the screen."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{served.server_port}"
    )  # if it is imported
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # tests are offline, this hub is not
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    provenance = {"sweep": "small", "form": "serving", "trial": {"number": 7}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "README.md").write_text("# card")
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    (folder / CHECKSUMS).write_text(checksums(folder))
    return folder


def test_every_file_of_an_export_gets_to_the_hub_in_one_commit(exported: Path, hub: Hub) -> None:
    pushed = push(exported, "me/mine")

    assert hub.files == {file.name: file.read_bytes() for file in exported.iterdir()}
    assert hub.message == "small, trial 7, as serving"
    assert hub.repos[0]["name"] == "mine"
    assert hub.repos[0].get("private") is True or hub.repos[0].get("visibility") == "private"
    assert pushed.url.endswith("/commit/1")
    assert TOKEN.encode() not in b"".join(hub.files.values())


def test_a_dry_run_says_what_would_go_there_and_sends_nothing(exported: Path, hub: Hub) -> None:
    pushed = push(exported, "me/mine", is_dry=True)

    assert {name for name, _ in pushed.files} == {file.name for file in exported.iterdir()}
    assert (hub.repos, hub.files, pushed.url) == ([], {}, "")


def test_what_was_changed_after_it_was_checked_is_not_sent(exported: Path, hub: Hub) -> None:
    (exported / "adapter_model.safetensors").write_bytes(bytes(999))

    with pytest.raises(ExportError, match=r"is not what was exported; changed or gone: adapter_model.safetensors"):
        push(exported, "me/mine")
    assert hub.files == {}


def test_a_hub_that_refuses_is_a_message(exported: Path, hub: Hub) -> None:
    hub.refuses = True

    with pytest.raises(ExportError, match="me/mine: the hub refuses"):
        push(exported, "me/mine")


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no export"):
        push(tmp_path, "me/mine", is_dry=True)
