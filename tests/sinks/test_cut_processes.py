"""Deliveries by cuts in real processes, killed and stopped at each step, on the embedded log and on `semel broker`;
each record is in one object."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from semel.host.steps import read_counters
from semel.ports import NewTopic, Step
from semel.sinks import Objects
from tests.sinks.cut_child import EVER, OUTBOX, opened
from tests.sinks.test_cuts import STEPS, held, listed
from tests.support.broker import BrokerProcess

pytestmark = pytest.mark.long

RECORDS = 300
ROOT = Path(__file__).parent.parent.parent


class Place:
    """A log with records, a sink of its own, and the processes that deliver from the one to the other."""

    def __init__(self, log: str, sink: Objects, folder: Path) -> None:
        self.log, self.sink, self.folder = log, sink, folder
        self.children: list[subprocess.Popen[str]] = []
        self.steps = folder / "steps"

    def fill(self, count: int = RECORDS) -> None:
        log, _ = opened(self.log, None)
        log.create([NewTopic(OUTBOX, 1, EVER)])
        write = log.writer(OUTBOX)
        for n in range(count):
            write(0, None, msgspec.json.encode(n), 1_000, None)
        log.flush()
        log.close()
        if (engine := getattr(log, "_engine", None)) is not None:
            engine.close()

    def start(self, **environ: str) -> subprocess.Popen[str]:
        records = 3 + len(self.children) % 5  # a cut decided anew would be another
        options = [f"{name}={value}" for name, value in self.sink.options.items()]
        # Standard error goes to a file: a stopped child would keep a pipe open.
        with (self.folder / f"said-{len(self.children)}").open("w") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.sinks.cut_child", self.log, str(records), self.sink.url, *options],
                cwd=ROOT,
                env={**os.environ, "SEMEL_STEPS": str(self.steps), **environ},
                stderr=said,
                text=True,
            )
        self.children.append(child)
        return child

    def said(self, child: subprocess.Popen[str]) -> str:
        return (self.folder / f"said-{self.children.index(child)}").read_text()

    def finish(self, child: subprocess.Popen[str]) -> None:
        assert child.wait(timeout=60) == 0, self.said(child)

    def killed_at_every_step_twice(self) -> None:
        for step in STEPS * 2:
            nth = 1 if step is Step.CLAIM_AFTER else 2
            child = self.start(SEMEL_KILL=f"{step}:{nth}")
            assert child.wait(timeout=60) == -signal.SIGKILL, (step, self.said(child))
        self.finish(self.start())
        counters = read_counters(self.steps)
        assert all(counters[step] for step in STEPS)

    def check(self, count: int = RECORDS) -> None:
        """Each record once, by the manifest and by listing, in order."""
        assert held(self.sink) == list(range(count))
        assert listed(self.sink) == list(range(count))

    def zombie(self, step: Step) -> None:
        zombie = self.start(SEMEL_STOP=f"{step}:2")
        stopped(zombie)
        self.finish(self.start())
        self.check()
        before = read_counters(self.steps)[Step.SINK_FENCED]
        zombie.send_signal(signal.SIGCONT)
        self.finish(zombie)
        self.check()
        assert read_counters(self.steps)[Step.SINK_FENCED] == before + 1

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


def stopped(child: subprocess.Popen[str]) -> None:
    """Returns when the child has stopped itself (SEMEL_STOP)."""
    deadline = time.monotonic() + 60
    while not (found := os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG))[0]:
        assert time.monotonic() < deadline, "it did not stop within a minute"
        time.sleep(0.01)
    assert os.WIFSTOPPED(found[1]), f"it ended instead of stopping: {found[1]}"


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Place]:
    made = Place(f"embedded:{tmp_path / 'log'}", Objects(tmp_path / "orders"), tmp_path)
    made.fill()
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Place]:
    with BrokerProcess(tmp_path / "data") as broker:
        made = Place(f"kafka://{broker.address}", Objects(tmp_path / "orders"), tmp_path)
        made.fill()
        yield made
        made.close()


def test_killed_at_every_step_twice_each_record_is_in_one_object(embedded: Place) -> None:
    """S3: SIGKILL before and after the claim, the cut, the object, the manifest and the position, twice, on one sink;
    each process has another size of cuts."""
    embedded.killed_at_every_step_twice()
    embedded.check()


def test_killed_on_a_broker_each_record_is_in_one_object(served: Place) -> None:
    """The same with the transactional id of a broker, whose transaction the next owner ends."""
    for step in (Step.CUT_BEFORE, Step.CUT_AFTER, Step.OBJECT_AFTER, Step.POSITION_AFTER):
        child = served.start(SEMEL_KILL=f"{step}:2")
        assert child.wait(timeout=60) == -signal.SIGKILL, (step, served.said(child))
    served.finish(served.start())
    served.check()


@pytest.mark.parametrize("step", [Step.CUT_BEFORE, Step.OBJECT_BEFORE, Step.POSITION_BEFORE])
def test_a_zombie_decides_nothing_and_changes_nothing(served: Place, step: Step) -> None:
    """S1: stopped before its cut, its put, its position; resumed after its successor has delivered everything: its
    decision is refused, its late put is the same bytes under the same key."""
    served.zombie(step)
