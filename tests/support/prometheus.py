"""A real Prometheus (Debian's) as a child process, with its own folder and port.

`apt-get install prometheus` is tried once where it is missing; where that cannot be, the tests fail and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from semel.host.free_port import free_port

START_S = 30.0


def installed() -> str:
    if shutil.which("prometheus") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", "prometheus"],
        ):
            subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = shutil.which("prometheus")
    if found is None:
        raise RuntimeError(
            "Prometheus is not installed here and could not be: as root on Debian or Ubuntu, `apt-get install "
            "prometheus`; elsewhere put prometheus into PATH."
        )
    return found


class PrometheusProcess:
    """One server over one folder, which scrapes nothing. The port is kept over restarts; `kill` is SIGKILL."""

    def __init__(self, folder: Path, *, late: str = "", options: Sequence[str] = ()) -> None:
        """`late`: its out_of_order_time_window."""
        self.folder, self.port = folder, free_port()
        self._options = ["--web.enable-remote-write-receiver", "--web.enable-admin-api", *options]
        self._config = f"storage:\n  tsdb:\n    out_of_order_time_window: {late}\n" if late else "global: {}\n"
        self._program = installed()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> PrometheusProcess:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yml").write_text(self._config)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, f"--config.file={self.folder}/config.yml", f"--storage.tsdb.path={self.folder}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}", *self._options],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=1).close()
                return self
            except OSError as why:
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                assert self._process.poll() is None, f"prometheus ended:\n{said}"
                assert time.monotonic() < deadline, f"prometheus does not serve ({why}):\n{said}"
                time.sleep(0.02)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> PrometheusProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def samples(url: str, metric: str, until_s: float = 100_000.0) -> list[tuple[dict[str, str], int, float]]:
    """Every sample of a metric up to a time: labels, stamp in ms, value."""
    asked = urlencode({"query": f"{metric}[{int(until_s)}s]", "time": until_s})
    with urllib.request.urlopen(f"{url}/api/v1/query?{asked}") as answer:
        found: Any = json.load(answer)["data"]["result"]
    return [(one["metric"], round(at * 1000), float(value)) for one in found for at, value in one["values"]]
