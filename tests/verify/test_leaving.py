"""`semel verify` leaves nothing behind, however it ends: no process, no folder, no table, no file."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[1] / "host" / "apps" / "counts.py"
WAIT_S = 60.0

pytestmark = pytest.mark.xdist_group("processes")


class Verifying:
    """A verification on a broker of its own, its temporary folder in ours."""

    def __init__(self, folder: Path, on: str = "broker") -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.database = folder / "counts.db"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "semel.cli.main", "verify", str(APP), "--on", on, "--crashes", "50"], cwd=folder,
            env={**os.environ, "COUNTS_DB": str(self.database), "TMPDIR": str(self.temporary)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            # A shell's background job has Ctrl-C ignored, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def tables(self) -> list[str]:
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=10)) as made:
            return [name for (name,) in made.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]

    def children(self, *, begun: bool = False) -> list[int]:
        """Processes, besides verify itself, that carry our folder in their environment or command line. `begun`: only
        those that are the program they were started for, no longer on the way to it."""
        mark, found = str(self.temporary).encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in (self.process.pid, os.getpid()):
                try:
                    command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                # Between fork and exec it is still `verify`, and then it arranges to die with it.
                on_the_way = b"\0verify\0" in command or b"prctl" in command
                if mark in command + environment and not (begun and on_the_way):
                    found.append(int(entry.name))
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    def started(self) -> None:
        """Until a worker has been killed: everything that can be left behind is there."""
        assert self.process.stderr is not None
        said = b""
        while b"killed" not in said:
            line = self.process.stderr.readline()
            assert line, said
            said += line
        assert any("verify" in name for name in self.tables()) and list(self.temporary.iterdir())


@pytest.fixture
def verifying(tmp_path: Path) -> Iterator[Callable[..., Verifying]]:
    made: list[Verifying] = []

    def start(on: str = "broker") -> Verifying:
        made.append(Verifying(tmp_path, on))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        for pid in one.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("on", [pytest.param("broker", marks=pytest.mark.long), "embedded"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_verification_that_is_told_to_end_removes_what_is_its_own(
    verifying: Callable[..., Verifying], tmp_path: Path, number: signal.Signals, on: str
) -> None:
    """The story: SIGTERM (a `timeout`, a CI job that is cancelled) left the run's tables in the user's database."""
    with closing(sqlite3.connect(tmp_path / "counts.db")) as made:
        made.execute("CREATE TABLE totals (customer TEXT PRIMARY KEY, total INTEGER)")
    run = verifying(on)
    run.started()
    run.process.send_signal(number)
    _, said = run.process.communicate(timeout=WAIT_S)
    assert run.process.returncode == 130 and b"Traceback" not in said, said
    assert run.tables() == ["totals"] and not list(run.temporary.iterdir()) and not run.children()


def test_a_database_file_that_was_not_there_is_not_there_afterwards(
    verifying: Callable[..., Verifying], tmp_path: Path
) -> None:
    """The story: verify left an empty counts.db in the user's folder."""
    run = verifying()
    run.started()
    run.process.send_signal(signal.SIGTERM)
    run.process.communicate(timeout=WAIT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own signal at a parent's death")
@pytest.mark.parametrize("on", [pytest.param("broker", marks=pytest.mark.long), "embedded"])
def test_no_process_outlives_a_verification_that_is_killed(verifying: Callable[..., Verifying], on: str) -> None:
    """The story: after kill -9 of verify its workers and its broker lived on. A stopped one, too, is ended.

    The test's own story: it once stopped a child that had not come to say with whom it dies. That one stood for ever,
    with verify's standard error in its hands, and the test waited for its end."""
    run = verifying(on)
    run.started()
    run.until(lambda: bool(run.children(begun=True)), "nothing runs")
    with contextlib.suppress(ProcessLookupError, IndexError):  # it is being killed all the time
        os.kill(run.children(begun=True)[0], signal.SIGSTOP)
    run.process.kill()
    run.until(lambda: not run.children(), f"{run.children()} live on")
