"""The processes of a proof: started with a fault armed, watched, killed, stopped and resumed; only ever our own.

A child dies with its parent, however that ends (Linux; by the thread that started it, as prctl has it). A child's
standard output and error go to a file in the run's folder; the counters of the steps that it reached lie in
a file that survives `kill -9`, shared by all incarnations of one child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from semel.errors import SemelError
from semel.host.steps import read_counters
from semel.ports import Step

STEPS = tuple(Step)


class ProofError(SemelError):
    """The proof itself could not be carried out: says what, where, what next. Never a verdict."""

    exit_code = 2


def semel_command(*words: str) -> list[str]:
    """This very installation's command line."""
    return [sys.executable, "-m", "semel.cli.main", *words]


# In a program of its own and not in a `preexec_fn`: between fork and exec of a process with threads nothing is safe.
_DIES_WITH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The same command, under the same pid, killed by the system when the thread that starts it is no more."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIES_WITH, str(os.getpid()), *command]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A signal that comes meanwhile is heard at the end: a child that was started and not yet noted would live on, and
    write to a folder that is being removed. (Not blocked: the child would inherit that.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        for one in heard:
            signal.raise_signal(one)


class Child:
    """One role (a worker slot, the broker) over all its incarnations."""

    def __init__(
        self, name: str, folder: Path, command: Sequence[str], env: Mapping[str, str], state: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.state = state or folder  # a worker's local state
        self.counters = folder / f"{name}.steps"
        self.armed = folder / f"{name}.arm"
        self.output = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.incarnations = 0
        self.expected_dead = False

    def start(self, armed: Mapping[str, str] | None = None) -> None:
        """Starts the next incarnation; `armed`: SEMEL_KILL or SEMEL_STOP."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} still runs"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SEMEL_KILL", "SEMEL_STOP"))}
        steps = {"SEMEL_STEPS": str(self.counters), "SEMEL_ARM": str(self.armed)}
        env = {**clean, **self.env, **steps, **(armed or {})}
        # kio loads hypothesis where that is installed, and that writes to the current folder: the user's.
        env.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(self.output.parent / "hypothesis"))
        with self.output.open("ab") as out, _uninterrupted():
            out.write(f"--- incarnation {self.incarnations} {dict(armed or {})}\n".encode())
            out.flush()
            self.process = subprocess.Popen(
                dying_with_us(self.command), env=env, stdin=subprocess.DEVNULL, stdout=self._stdout(out), stderr=out
            )
        self.started = time.monotonic()
        self.incarnations += 1

    def _stdout(self, out: object) -> int:
        return out.fileno()  # type: ignore[attr-defined, no-any-return]

    def running(self) -> bool:
        """Whether this incarnation of a worker has said that it runs."""
        return b"\nrunning " in self.output.read_bytes().rpartition(b"--- incarnation")[2]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def exit_code(self) -> int | None:
        """None while it runs; -9 after a kill."""
        return None if self.process is None else self.process.poll()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stopped(self) -> bool:
        """Whether the process stands still under SIGSTOP."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state == "T"

    def signal(self, what: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, what)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def leave(self, timeout_s: float = 30) -> int:
        """SIGTERM; returns the exit code. One that does not leave in time is killed, which is -9."""
        if self.process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def hits(self) -> dict[Step, int]:
        """How often each step was reached, over all incarnations."""
        return read_counters(self.counters)

    def hit(self, step: Step) -> int:
        return self.hits()[step]

    def tail(self, lines: int = 15) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])
        return ""


class BrokerChild(Child):
    """`semel broker` on a port of its own, the same over all incarnations."""

    def __init__(self, folder: Path, settings: Sequence[str], durability: str = "fsync") -> None:
        self.data = folder / "data"
        self.port = 0
        self._settings = [word for setting in settings for word in ("--set", setting)]
        self._durability = durability
        super().__init__("broker", folder, [], {})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, armed: Mapping[str, str] | None = None) -> None:
        self.command = semel_command(
            "broker", str(self.data), "--listen", f"127.0.0.1:{self.port}", "--durability", self._durability,
            *self._settings,
        )  # fmt: skip
        super().start(armed)

    def _stdout(self, out: object) -> int:
        return subprocess.PIPE

    def wait_ready(self, timeout_s: float = 60) -> bool:
        """Waits for its `ready HOST:PORT`; False when it died first (an armed fault can strike while it recovers)."""
        assert self.process is not None and self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), True)
        line = self.process.stdout.readline().decode().split()
        if not line:
            self.process.wait(timeout_s)
            return False
        if line[0] != "ready":
            raise ProofError(f"the broker said {' '.join(line)!r} instead of `ready HOST:PORT`:\n{self.tail()}")
        self.port = int(line[1].rpartition(":")[2])
        return True
