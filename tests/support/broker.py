"""`semel broker` as a real process, for tests: started, killed and started again on the same folder and port.

    with BrokerProcess(tmp_path / "data") as broker:
        producer = Producer({"bootstrap.servers": broker.address})
        broker.kill()       # SIGKILL, waited for
        broker.start()      # same folder, same port

`start` returns when the broker has printed its ready line; nothing here sleeps. It dies with the process that started
it: a `timeout` around pytest ends that without a teardown.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from semel.proof.processes import dying_with_us

READY_S_MAX = 60.0
STOP_S_MAX = 60.0


class BrokerFailed(AssertionError):
    """The broker did not start, or did not end as it should; the message has its log."""


class BrokerProcess:
    """One broker on one folder. `port` 0: chosen at the first start, then kept."""

    def __init__(
        self,
        folder: str | Path,
        port: int = 0,
        *,
        durability: str = "fsync",
        env: Mapping[str, str] | None = None,
        settings: Sequence[str] = (),
        advertise: str | None = None,
        start: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.port = port
        self.durability = durability
        self.env = dict(env or {})
        self.settings = list(settings)
        self.advertise = advertise
        self.process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        if start:
            self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr, over all its starts."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def start(self, env: Mapping[str, str] | None = None) -> BrokerProcess:
        """Starts it, and returns when it serves. `env` is for this start only."""
        assert self.process is None, "it is running"
        command = [sys.executable, "-m", "semel.cli.main", "broker", str(self.folder)]
        command += ["--listen", self.address, "--durability", self.durability]
        if self.advertise is not None:
            command += ["--advertise", self.advertise]
        for setting in self.settings:
            command += ["--set", setting]
        environ = {**os.environ, **self.env, **(env or {})}
        self.process = subprocess.Popen(dying_with_us(command), stdout=subprocess.PIPE, stderr=self._log, env=environ)
        line = self._first_line()
        if not line.startswith("ready "):
            code = self.process.wait(STOP_S_MAX)
            self._forget()
            raise BrokerFailed(f"no ready line but {line!r}, exit code {code}:\n{self.log}")
        self.port = int(line.rpartition(":")[2])
        return self

    def _first_line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        out, line = self.process.stdout.fileno(), b""
        deadline = time.monotonic() + READY_S_MAX
        while not line.endswith(b"\n"):
            waited = select.poll()  # select() knows no descriptor above 1,023
            waited.register(out, select.POLLIN)
            readable = waited.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not readable:
                self.process.kill()
                return f"nothing within {READY_S_MAX:.0f} s"
            byte = os.read(out, 1)
            if not byte:
                break
            line += byte
        return line.decode()

    def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._forget()

    def stop(self, expected: int = 0) -> None:
        """SIGTERM; it must end with exit code `expected`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.wait(expected)

    def wait(self, expected: int) -> None:
        """Waits for an end that was provoked otherwise (SEMEL_KILL: -9)."""
        assert self.process is not None
        code = self.process.wait(STOP_S_MAX)
        self._forget()
        if code != expected:
            raise BrokerFailed(f"exit code {code}, expected {expected}:\n{self.log}")

    def pause(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """kill -9 and start."""
        self.kill()
        self.start()

    def _forget(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def close(self) -> None:
        """Ends it whatever state it is in."""
        if self.process is not None:
            self.kill()
        self._log.close()

    def __enter__(self) -> BrokerProcess:
        if self.process is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._log.closed:
            print(f"--- broker on {self.folder}:\n{self.log}", file=sys.stderr)
        self.close()
