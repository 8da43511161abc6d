"""FerretDB 1.24 over SQLite as a child process: an imitation of MongoDB's protocol, without transactions and views.

No server of MongoDB's own is to be had from PyPI, Debian or Maven. This one is a Go module, which
`tests/servers/ferretdb` embeds; building it takes minutes, so its tests belong to `make proof`.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pymongo

from semel.host.free_port import free_port

HERE = Path(__file__).resolve().parent.parent / "servers" / "ferretdb"
START_S = 30.0


def program() -> Path:
    """Built when it is not there; one process at a time."""
    built = HERE / ".build" / "ferretdb"
    if shutil.which("go") is None:
        raise RuntimeError("go is not on the PATH: `make proof WHAT=mongodb` builds FerretDB with it")
    built.parent.mkdir(exist_ok=True)
    with open(HERE / ".build" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            words = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(built), "."]
            subprocess.run(words, cwd=HERE, check=True, timeout=1_800)
    return built


class FerretProcess:
    """One server over one folder. The port is chosen once and kept over restarts; `kill` is SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/test"

    def start(self) -> FerretProcess:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program()), str(self.folder / "data"), f"127.0.0.1:{self.port}"],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(self.url, serverSelectionTimeoutMS=200)
            try:
                client.admin.command("ping")
                return self
            except pymongo.errors.PyMongoError as why:
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                assert self._process.poll() is None, f"FerretDB ended:\n{said}"
                assert time.monotonic() < deadline, f"FerretDB does not serve ({why}):\n{said}"
            finally:
                client.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> FerretProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
