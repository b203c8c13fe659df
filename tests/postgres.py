"""A PostgreSQL server of its own for tests: Debian's binaries, a folder in /tmp, a port of its own, a password."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USER = "postgres"
"""Also the account of the server's process where tests run as root, for it refuses to be root; Debian's package makes it."""


class Server:
    """A server that can be stopped and started again.

    Args:
        binaries: Folder with initdb and pg_ctl.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="tuner-postgres-", dir="/tmp"))
        self.password = f"pw-{secrets.token_hex(8)}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        word = self._folder / "password"
        word.write_text(self.password)
        if os.getuid() == 0:
            shutil.chown(self._folder, USER)
            shutil.chown(word, USER)
        self._call("initdb", "-U", USER, "--auth=scram-sha-256", f"--pwfile={word}", "--no-sync")
        self.start()

    @property
    def address(self) -> str:
        """Of the database that each server begins with."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-k {self._folder} -h 127.0.0.1 -p {self.port} -c shared_buffers=16MB"
        self._call("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a crash would: connections end at once."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *words: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *words]
        user = USER if os.getuid() == 0 else None
        subprocess.run(command, check=True, user=user, cwd=self._folder, stdout=subprocess.DEVNULL, timeout=60)


def find_binaries() -> Path | None:
    """Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A server whose password this process has in PGPASSWORD."""
    binaries = find_binaries()
    if binaries is None and not os.environ.get("TUNER_REQUIRE_POSTGRES"):
        pytest.skip("no PostgreSQL on this machine")
    assert binaries, "TUNER_REQUIRE_POSTGRES is set, and there is no PostgreSQL"
    server = Server(binaries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", server.password)
        yield server
    server.remove()
