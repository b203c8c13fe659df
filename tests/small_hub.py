"""A hub on this machine that gives out files of models and data sets, and counts what was fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class SmallHub(ThreadingHTTPServer):
    """Serves each folder `<kind>/<owner>/<name>` below its own as a repository.

    Args:
        folder: Holds `models` and `datasets`.
        meeting: (file name, number): so many processes must have asked about it before anyone gets it, so that they are at
            it together.
    """

    daemon_threads = True

    def __init__(self, folder: Path, meeting: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.meeting = meeting
        self.num_asked: Counter[str] = Counter()
        self.num_fetched: Counter[str] = Counter()
        self.changed = threading.Condition()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT should be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path, meeting: tuple[str, int]) -> Iterator[SmallHub]:
    """A hub until the end of the block."""
    hub = SmallHub(folder, meeting)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(has_body=False)

    def do_GET(self) -> None:
        self._api() if self._parts[0] == "api" else self._file(has_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else [part.split("=")[1] for part in body.split("&")]
        repo = self._repo(self._parts[1:])
        self._json([_entry(repo, name) for name in map(unquote, asked) if (repo / name).is_file()])

    @property
    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _repo(self, parts: list[str]) -> Path:
        kind, owner, name = parts[:3] if parts[0] in {"models", "datasets"} else ["models", *parts[:2]]
        return self.server.folder / kind / owner / name

    def _api(self) -> None:
        kind, owner, name, *rest = self._parts[1:]
        repo = self.server.folder / kind / owner / name
        names = sorted(file.name for file in repo.iterdir()) if repo.is_dir() else []
        if not names:
            self._refuse("RepoNotFound")
        elif rest[:1] == ["tree"]:
            self._json([_entry(repo, one) for one in names]) if len(rest) == 2 else self._refuse("EntryNotFound")
        else:
            siblings = [{"rfilename": one} for one in names]
            self._json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _file(self, *, has_body: bool) -> None:
        parts = self._parts
        file = self._repo(parts) / parts[-1]
        if "resolve" not in parts or not file.is_file():
            self._refuse("EntryNotFound")
            return
        with self.server.changed:
            (self.server.num_fetched if has_body else self.server.num_asked)[file.name] += 1
            self.server.changed.notify_all()
            name, num = self.server.meeting
            if has_body and file.name == name:
                self.server.changed.wait_for(lambda: self.server.num_asked[name] >= num, 100)
        self._answer(200, file.read_bytes(), has_body=has_body, etag=_digest(file))

    def _refuse(self, code: str) -> None:
        self._answer(404, b"{}", has_body=self.command != "HEAD", code=code)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), has_body=True)

    def _answer(self, status: int, body: bytes, *, has_body: bool, etag: str = "", code: str = "") -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"' if etag else "", "X-Error-Code": code}
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the signature is the library's
        """No word on the screen."""


def _entry(repo: Path, name: str) -> dict[str, Any]:
    file = repo / name
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
