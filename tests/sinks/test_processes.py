"""Deliveries in real processes, killed and stopped at each step; the sink has each record once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.host.steps import read_counters
from semel.ports import Step
from tests.sinks.child import sink_of
from tests.sinks.conftest import database
from tests.sinks.values import held, opened, totals

RECORDS = 100
STEPS = [
    Step.ROWS_BEFORE,
    Step.ROWS_AFTER,
    Step.POSITION_BEFORE,
    Step.POSITION_AFTER,
    Step.SINK_BEFORE,
    Step.SINK_AFTER,
]
ROOT = Path(__file__).parent.parent.parent


class Place:
    """A sink of its own, and the processes that deliver to it."""

    def __init__(self, system: str, address: str, key: str, folder: Path) -> None:
        self.system, self.address, self.key, self.folder = system, address, key, folder
        self.children: list[subprocess.Popen[str]] = []

    def start(self, **environ: str) -> subprocess.Popen[str]:
        # Standard error goes to a file: a stopped child would keep a pipe open.
        with (self.folder / f"said-{len(self.children)}").open("w") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.sinks.child", self.system, self.address, self.key, str(RECORDS)],
                cwd=ROOT,
                env={**os.environ, **environ},
                stderr=said,
                text=True,
            )
        self.children.append(child)
        return child

    def said(self, child: subprocess.Popen[str]) -> str:
        return (self.folder / f"said-{self.children.index(child)}").read_text()

    def finish(self, child: subprocess.Popen[str]) -> None:
        assert child.wait(timeout=60) == 0, self.said(child)

    def rows(self) -> list[tuple[Any, ...]]:
        connection = opened(sink_of(self.system, self.address, self.key))
        try:
            return held(connection)
        finally:
            connection.close()

    def expected(self) -> list[tuple[Any, ...]]:
        every = [(f"c{n % 7}", n) for n in range(RECORDS)]
        return totals(dict(every).items() if self.key else every)

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


@pytest.fixture(params=["sqlite", "postgres"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(system: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    address = str(tmp_path / "sink.db") if system == "sqlite" else database(request.getfixturevalue("server"))
    made = Place(system, address, "", tmp_path)
    yield made
    made.close()


def stopped(child: subprocess.Popen[str]) -> None:
    """Returns when the child has stopped itself (SEMEL_STOP)."""
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended instead of stopping: {status}"


@pytest.mark.parametrize("key", ["customer", ""])
def test_killed_at_every_step_each_record_is_there_once(place: Place, key: str) -> None:
    """S10: SIGKILL before and after the rows, the position and the commit, one after the other on one sink, each in
    the second batch of its process; each death is seen, and the last process finishes."""
    place.key = key
    for step in STEPS:
        child = place.start(SEMEL_KILL=f"{step}:2", SEMEL_STEPS=str(place.folder / "steps"))
        assert child.wait(timeout=60) == -signal.SIGKILL, (step, place.said(child))
    place.finish(place.start())
    assert place.rows() == place.expected()
    counters = read_counters(place.folder / "steps")
    assert all(counters[step] for step in STEPS)


def test_a_zombie_between_batches_is_refused(place: Place) -> None:
    """S1: stopped after its commit, resumed after its successor's: its next batch is fenced, which is counted."""
    zombie = place.start(SEMEL_STOP=f"{Step.SINK_AFTER}:2", SEMEL_STEPS=str(place.folder / "steps"))
    stopped(zombie)
    place.finish(place.start())
    assert place.rows() == place.expected()
    zombie.send_signal(signal.SIGCONT)
    place.finish(zombie)
    assert place.rows() == place.expected()
    assert read_counters(place.folder / "steps")[Step.SINK_FENCED] == 1


@pytest.mark.parametrize("system", ["postgres"])
@pytest.mark.parametrize("step", STEPS[:-1])
def test_postgres_a_zombie_inside_its_transaction_does_not_hold_up_its_successor(place: Place, step: Step) -> None:
    """S14: stopped inside the sink's transaction; the successor claims within the hand-over time (2 s here), and the
    zombie, resumed, writes nothing: its session is gone."""
    zombie = place.start(SEMEL_STOP=f"{step}:2")
    stopped(zombie)
    began = time.monotonic()
    heir = place.start()
    place.finish(heir)
    assert time.monotonic() - began < 30.0, "two seconds of hand-over, and the start of a process on a busy machine"
    assert "it was told to end" not in place.said(heir), "the first try after it was told to end succeeds"
    assert place.rows() == place.expected()
    zombie.send_signal(signal.SIGCONT)
    place.finish(zombie)
    assert place.rows() == place.expected()


@pytest.mark.parametrize("system", ["sqlite"])
def test_sqlite_a_zombie_inside_its_transaction_is_named(place: Place) -> None:
    """S14: nobody can take SQLite's lock from it. Who waits says which process holds the file, that it is stopped and
    what to do; once it goes on or is killed, each record is there once."""
    zombie = place.start(SEMEL_STOP=f"{Step.ROWS_AFTER}:2")
    stopped(zombie)
    heir = place.start()
    deadline = time.monotonic() + 30
    while not (said := place.said(heir)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert f"held by pid {zombie.pid} (stopped)" in said
    assert f"kill -CONT {zombie.pid}" in said
    zombie.kill()
    place.finish(heir)
    assert place.rows() == place.expected()


def test_postgres_crashes_and_comes_back(tmp_path: Path) -> None:
    """S13: what Postgres acknowledged survives its own crash; the delivery waits and goes on."""
    from semel.host.postgres import PostgresServer

    with PostgresServer(tmp_path / "server") as server:
        place = Place("postgres", server.dsn, "", tmp_path)
        try:
            stuck = place.start(SEMEL_STOP=f"{Step.SINK_BEFORE}:3")
            stopped(stuck)
            server.kill()
            stuck.send_signal(signal.SIGCONT)
            server.start()
            place.finish(stuck)
            assert place.rows() == place.expected()
        finally:
            place.close()
