"""A real OpenSearch node as a child process, from Maven's jars, with its own folder and ports.

Needs a JDK (17 or newer) and Maven. The jars come into `tests/servers/opensearch/libs`, once (about 20 s).
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import urllib3

from semel.host.free_port import free_port

HERE = Path(__file__).resolve().parent.parent / "servers" / "opensearch"
START_S = 120.0


def libs() -> Path:
    """The folder of jars, fetched when it is not there; one process at a time."""
    folder = HERE / "libs"
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not on the PATH: `make test-servers` needs a JDK 17 or newer and Maven")
    with open(HERE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("opensearch-2*.jar")):
            subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(HERE / "pom.xml"), "package"], check=True, timeout=600)
        source, made = HERE / "Node.java", folder / "Node.class"
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            words = ["javac", "-cp", f"{folder}/*", "-d", str(folder), str(source)]
            subprocess.run(words, check=True, timeout=120)
    return folder


class OpenSearchProcess:
    """One node. `start` returns when it serves; `kill` is SIGKILL."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder, self.settings = folder, dict(settings or {})
        self.port, self._transport = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> OpenSearchProcess:
        jars = libs()
        self.folder.mkdir(parents=True, exist_ok=True)
        # A node that was killed leaves its lock file, which no process holds.
        command = ["java", "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += ["-cp", f"{jars}:{jars}/*", "Node", str(self.folder / "node"), str(self.port), str(self._transport)]
        command += [f"{name}={value}" for name, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        pool = urllib3.PoolManager(retries=False, timeout=5)
        while True:
            try:
                # Recovered: every primary shard serves again.
                health = f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=1s"
                if pool.request("GET", health).status == 200:
                    return self
            except urllib3.exceptions.HTTPError:
                pass
            assert self._process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4_000:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> OpenSearchProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
