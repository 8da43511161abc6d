"""ClickHouse 26 for the tests: the engine as the wheel chdb has it, behind HTTP (`clickhouse_serving.py`), as our own
child with its own folder and port. Debian's server is too old for tokens; no server is to be had on PyPI."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import clickhouse_connect

from semel.host.free_port import free_port

START_S = 60.0
ROOT = Path(__file__).parents[2]


class ClickHouseProcess:
    """The port is chosen once and kept over restarts; `kill` is SIGKILL."""

    def __init__(self, folder: Path, *, merges: bool = False) -> None:
        """`merges`: parts are merged, as a server does it. Without, a table takes 3,000 inserts and no more."""
        self.folder, self.port, self._merges = folder, free_port(), ["merges"] if merges else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/default"

    def client(self) -> Any:
        return client_at(self.port)

    def start(self) -> ClickHouseProcess:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "log"
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.clickhouse_serving", str(self.folder / "data"), str(self.port),
                 *self._merges],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            told = log.read_text(errors="replace")[-2_000:]
            assert self._process.poll() is None and time.monotonic() < deadline, f"chdb does not serve:\n{told}"
            time.sleep(0.05)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> ClickHouseProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def client_at(port: int) -> Any:
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, compress=False, autogenerate_session_id=False)
