"""A receiver as a child process (of `apps.py`, or of another module): started, killed, stopped, on one port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from semel.host.free_port import free_port

ROOT = Path(__file__).parents[2]
START_S = 30.0


class Served:
    def __init__(
        self, kind: str, address: str, folder: Path, module: str = "tests.receiver.apps", **environ: str
    ) -> None:
        self.kind, self.address, self.module, self.environ = kind, address, module, environ
        self.port = free_port()
        self.said = folder / f"said-{kind}-{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/check"

    def start(self) -> None:
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, self.kind, self.address, str(self.port)],
                cwd=ROOT,
                env={**os.environ, **self.environ},
                stdout=said,
                stderr=said,
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None and time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
