"""Apache Kafka 4.3.1 as a child process: the reference that semel's broker and processor are held against.

Needs a JDK (17 or newer) and Maven; `requirements()` says what is missing. The jars come from Maven Central into
`tests/servers/kafka/libs`, once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

from semel.host.free_port import free_port

HERE = Path(__file__).resolve().parent.parent / "servers" / "kafka"


def libs() -> Path:
    """The folder of jars, fetched when it is not there; one process at a time."""
    folder = HERE / "libs"
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not on the PATH: `make test-servers` needs a JDK 17 or newer and Maven")
    with open(HERE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("kafka_2.13-*.jar")):
            subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(HERE / "pom.xml"), "package"], check=True, timeout=600)
    return folder


class KafkaProcess:
    """One broker in KRaft mode with its own folder and port. `advertise` names a proxy in front of it."""

    def __init__(self, folder: Path, *, advertise: str | None = None, props: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port(count=2)  # broker and controller
        # Tests write times of 1970; a test that a slow machine holds up past the first look (30 s) found them deleted.
        self.props = {"log.retention.ms": "-1"} | dict(props or {})
        self._guard: subprocess.Popen[bytes] | None = None
        if advertise:
            self.props["advertised.listeners"] = f"PLAINTEXT://{advertise}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int((self.folder / "kafka.pid").read_text())

    def start(self) -> KafkaProcess:
        libs()
        env = dict(os.environ, KAFKA_HEAP_OPTS="-Xmx768m -Xms512m")
        if self.props:
            self.folder.mkdir(parents=True, exist_ok=True)
            props = self.folder / "extra.properties"
            props.write_text("".join(f"{k}={v}\n" for k, v in self.props.items()))
            env["KAFKA_PROPS"] = str(props)
        done = subprocess.run(
            [str(HERE / "start-kafka.sh"), str(self.folder), str(self.port)],
            env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Apache Kafka did not start: {done.stderr[-2000:]}")
        self._guarded()
        return self

    def _guarded(self) -> None:
        """The script leaves the broker without a parent. Somebody of ours waits until this process is no more, however
        it ended (its end of the pipe is closed then), and stops the broker."""
        self._unguarded()
        self._guard = subprocess.Popen(
            ["bash", "-c", 'read -r _ || exec "$0" "$1"', str(HERE / "stop-kafka.sh"), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _unguarded(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"no more\n", timeout=90)
            self._guard = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        (self.folder / "kafka.pid").unlink()
        self._unguarded()

    def stop(self) -> None:
        self._unguarded()
        subprocess.run([str(HERE / "stop-kafka.sh"), str(self.folder)], capture_output=True, timeout=90)

    def __enter__(self) -> KafkaProcess:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
