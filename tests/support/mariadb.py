"""A real MariaDB for the tests: Debian's server as our own child, with its own folder and port.

`apt-get install mariadb-server` is tried once where it is missing; where that cannot be, the tests fail and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pymysql

from semel.host.free_port import free_port

START_S = 90.0  # on a busy machine


def installed() -> tuple[str, str]:
    """mariadbd and mariadb-install-db."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

    def found() -> list[str]:
        return [p for p in (shutil.which(n, path=path) for n in ("mariadbd", "mariadb-install-db")) if p]

    if len(found()) < 2 and os.geteuid() == 0 and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "mariadb-server"]):
            subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if len(found()) < 2:
        raise RuntimeError(
            "MariaDB's server is not installed here and could not be: as root on Debian or Ubuntu, "
            "`apt-get install mariadb-server`; elsewhere put mariadbd and mariadb-install-db into PATH."
        )
    server, install = found()
    return server, install


class MariaDBServer:
    """One server over one folder. The port is chosen once and kept over restarts."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder, self.settings = folder, dict(settings or {})
        self.port = free_port()
        self._server, self._install = installed()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mysql://root:@127.0.0.1:{self.port}/test"

    def __enter__(self) -> MariaDBServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        assert self._process is None, "it is running"
        data = self.folder / "data"
        user = ["--user=root"] if os.geteuid() == 0 else []
        if not data.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [self._install, "--no-defaults", *user, f"--datadir={data}", "--auth-root-authentication-method=normal",
                 "--skip-test-db"],
                check=True, capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        log = self.folder / "log"
        self._process = subprocess.Popen(
            [self._server, "--no-defaults", *user, f"--datadir={data}", f"--port={self.port}",
             "--bind-address=127.0.0.1", f"--socket={self._socket()}", f"--pid-file={self.folder / 'pid'}",
             f"--log-error={log}", "--innodb-buffer-pool-size=32M",
             *(f"--{name}={value}" for name, value in self.settings.items())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", autocommit=True)
                break
            except pymysql.MySQLError as why:
                said = log.read_text()[-2_000:] if log.exists() else ""
                assert self._process.poll() is None, f"mariadbd ended:\n{said}"
                assert time.monotonic() < deadline, f"mariadbd does not serve ({why}):\n{said}"
                time.sleep(0.05)
        connection.cursor().execute("CREATE DATABASE IF NOT EXISTS test")
        connection.close()

    def _socket(self) -> str:
        """A socket's path has a limit of about 100 bytes, which a test's folder passes."""
        return f"/tmp/semel-mariadb-{self.port}.sock"

    def kill(self) -> None:
        """SIGKILL: what it acknowledged must be there at the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        Path(self._socket()).unlink(missing_ok=True)
