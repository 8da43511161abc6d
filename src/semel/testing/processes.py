"""The trials that need real processes: deliveries killed at each named step, and stopped ones that come back.

Each process delivers one and the same outbox, in batches of another size than the one before it: after each death the
next cuts differently. Invariant: every step that a run without faults reaches is killed at, in two processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from semel.contract import Fence, PositionIn, Settlement
from semel.guarantees.words import once
from semel.host.steps import read_counters
from semel.ports import NoSteps, Step, TwoPhaseConnection
from semel.testing.child import OFFSETS
from semel.testing.subject import Entry, NotTried, Stand
from semel.testing.trials import stored

RECORDS = 400
SIZES = (10, 7, 13, 3, 20)
WAIT_S = 60.0
# Steps of others than the delivery, and steps at which a refusal is counted.
NOT_OURS = frozenset(("tasks", "output", "offsets", "commit", "decision", "markers", "sync", "fenced", "stale"))


class Processes:
    """Deliveries of one outbox to one sink."""

    def __init__(self, stand: Stand, folder: Path) -> None:
        self._stand, self._folder = stand, folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.steps = folder / "steps"

    def start(self, *, offsets: str = "offsets", batch: int = 0, **environ: str) -> subprocess.Popen[bytes]:
        subject = self._stand.subject
        number = len(self._started)
        words = [
            f"{subject.make.__module__}:{subject.make.__qualname__}",
            subject.address,
            self._stand.suffix,
            str(RECORDS),
            str(batch or SIZES[number % len(SIZES)]),
        ]
        with (self._folder / f"said-{number}").open("wb") as said:  # a stopped child would keep a pipe open
            child = subprocess.Popen(
                [sys.executable, "-m", "semel.testing.child", *words],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    OFFSETS: str(self._folder / offsets),
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self._started.append(child)
        return child

    def ends(self, child: subprocess.Popen[bytes], code: int, what: str) -> None:
        try:
            found = child.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            found = None
        said = self.said(child)
        self._stand.require(found == code, f"{what} ended with {found}, not {code}; it said:\n{said}")

    def said(self, child: subprocess.Popen[bytes]) -> str:
        return (self._folder / f"said-{self._started.index(child)}").read_text()[-2_000:]

    def stopped(self, child: subprocess.Popen[bytes], step: Step) -> None:
        """Returns when the child has stopped itself."""
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        self._stand.require(os.WIFSTOPPED(status), f"a process that was to stop at {step} ended: {status}")

    def counted(self, **environ: str) -> Mapping[Step, int]:
        """One delivery without faults, in batches of ten."""
        self.steps.unlink(missing_ok=True)
        self.ends(self.start(batch=10, SEMEL_STEPS=str(self.steps), **environ), 0, "a delivery without faults")
        return read_counters(self.steps)

    def close(self) -> None:
        for child in self._started:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


@contextlib.contextmanager
def processes(stand: Stand) -> Iterator[Processes]:
    with tempfile.TemporaryDirectory(prefix="semel-kit-") as folder:
        made = Processes(stand, Path(folder))
        try:
            yield made
        finally:
            made.close()


def fresh(stand: Stand) -> Stand:
    """The same sink under another name, for a run whose rows are not compared."""
    return Stand(stand.subject, stand.trial)


def _steps_of(stand: Stand) -> dict[Step, int]:
    """The steps that a delivery to this sink reaches, and how often; those of its contract's fields are among them."""
    apart = fresh(stand)
    try:
        with processes(apart) as runs:
            counted = runs.counted()
        apart.holds("after a delivery without faults", apart.entries(RECORDS))
    finally:
        apart.close()
        apart.removed()
    wanted = [Step.ROWS_BEFORE, Step.ROWS_AFTER]
    if stand.contract.position is PositionIn.SINK:
        wanted += [Step.POSITION_BEFORE, Step.POSITION_AFTER]
    if stand.contract.remembers_position or stand.contract.settlement in (Settlement.DECIDED, Settlement.ROLLED_BACK):
        wanted += [Step.SINK_BEFORE, Step.SINK_AFTER]
    if stand.contract.settlement is Settlement.DECIDED:
        wanted += [Step.PREPARE_BEFORE, Step.PREPARE_AFTER, Step.DECIDE_BEFORE, Step.DECIDE_AFTER]
    for step in wanted:
        stand.require(counted[step] > 0, f"it never reaches {step}: nobody can be killed there, so nothing is known")
    return {step: n for step, n in counted.items() if n and step.partition(".")[0] not in NOT_OURS}


def crashes(stand: Stand) -> None:
    """Killed (SIGKILL) at each step that it reaches, in two processes one after the other; the last one finishes, and
    each record has had its effect once. A sink that accepts repeats has lost none."""
    found = _steps_of(stand)
    with processes(stand) as runs:
        for step, often in found.items():
            for count in (min(2, often), 1):  # in its second batch, then in its first; a claim comes once per process
                child = runs.start(SEMEL_KILL=f"{step}:{count}")
                runs.ends(child, -signal.SIGKILL, f"a process to be killed at {step}:{count}")
        runs.ends(runs.start(), 0, "the last process")
    _all_there(stand, "after a kill at each step, twice")


def _all_there(stand: Stand, when: str) -> None:
    if once(stand.contract) or stand.keyed:
        return stand.holds(when, stand.entries(RECORDS))
    missing = set(stand.expected(stand.entries(RECORDS))) - set(stand.read())
    return stand.require(not missing, f"{when}, {len(missing)} records are missing: {sorted(missing)[:5]}")


def in_doubt(stand: Stand) -> None:
    """Killed with a cut prepared, and with one decided (S4, S5); who takes over is killed before it has settled that,
    and after; so is the next one. The last one finishes: each record is there once, and nothing is left prepared."""
    if stand.contract.settlement is not Settlement.DECIDED:
        raise NotTried("it prepares nothing")
    with processes(stand) as runs:
        for left in (Step.ROWS_AFTER, Step.PREPARE_AFTER, Step.DECIDE_AFTER, Step.SINK_AFTER):
            for settling in (Step.SETTLE_BEFORE, Step.SETTLE_AFTER):
                runs.ends(runs.start(SEMEL_KILL=f"{left}:1"), -signal.SIGKILL, f"a process to be killed at {left}")
                child = runs.start(SEMEL_KILL=f"{settling}:1")
                runs.ends(child, -signal.SIGKILL, f"who takes over from it, to be killed at {settling},")
        runs.ends(runs.start(), 0, "the last process")
    stand.holds("after kills while a former owner's cut is settled", stand.entries(RECORDS))
    connection = cast(TwoPhaseConnection, stand.sink.open(NoSteps()))
    try:
        connection.prepare(Entry)
        left_there = list(connection.in_doubt())
    finally:
        connection.close()
    stand.require(not left_there, f"left in doubt: {', '.join(left_there)}")


def zombies(stand: Stand) -> None:
    """Stopped before its batch, resumed after its successor has delivered everything: what it then writes is refused or
    has no effect, and is counted."""
    if not once(stand.contract):
        raise NotTried("nothing stops a superseded owner; repeats are accepted")
    with processes(stand) as runs:
        step = Step.BATCH_BEFORE
        late = runs.start(SEMEL_STOP=f"{step}:2", SEMEL_STEPS=str(runs.steps))
        runs.stopped(late, step)
        runs.ends(runs.start(), 0, "the successor")
        stand.holds("after the successor", stand.entries(RECORDS))
        late.send_signal(signal.SIGCONT)
        runs.ends(late, 0, "the zombie, which must see that it is one and find nothing left to do,")
        counted = read_counters(runs.steps)
    stand.holds("after the zombie", stand.entries(RECORDS))
    if stand.contract.fence in (Fence.EPOCH_IN_TRANSACTION, Fence.TRANSACTIONAL_ID):
        stand.require(counted[Step.SINK_FENCED] > 0, "the zombie was never refused: nothing was tried")
    if stand.contract.fence is Fence.OLDER_VERSION_LOSES:
        refused = counted[Step.SINK_FENCED] + counted[Step.SINK_STALE]
        stand.require(refused > 0, "no row of the zombie was stale: nothing was tried")
    if stand.contract.through:
        stand.require(stored(stand) > RECORDS, "the zombie appended nothing: nothing was tried")


def paused(stand: Stand) -> None:
    """Stopped inside the sink's transaction (S14): its successor does not wait for ever, and what it does when it comes
    back has no second effect."""
    within = stand.subject.hand_over_s
    if within is None or not once(stand.contract):
        raise NotTried("a stopped owner's lock cannot be taken here (hand_over_s=)")
    for step in _inside(stand):
        _paused_at(stand, step, within)


def _inside(stand: Stand) -> list[Step]:
    reached = _steps_of(stand)
    inside = (Step.ROWS_AFTER, Step.PREPARE_AFTER, Step.POSITION_AFTER, Step.SINK_BEFORE)
    return [s for s in inside if s in reached]


def _paused_at(stand: Stand, step: Step, within_s: float) -> None:
    apart = fresh(stand)
    try:
        with processes(apart) as runs:
            late = runs.start(SEMEL_STOP=f"{step}:2")
            runs.stopped(late, step)
            began = time.monotonic()
            runs.ends(runs.start(), 0, f"the successor of one that stopped at {step}")
            # The start of a process on a busy machine comes on top.
            took = time.monotonic() - began
            apart.require(took < 2 * within_s + 5, f"the successor waited {took:.1f} s for one stopped at {step}")
            apart.holds(f"after the successor of one stopped at {step}", apart.entries(RECORDS))
            late.send_signal(signal.SIGCONT)
            runs.ends(late, 0, f"the one that had stopped at {step}")
        apart.holds(f"after the one stopped at {step} came back", apart.entries(RECORDS))
    finally:
        apart.close()
        apart.removed()


def forgotten(stand: Stand) -> None:
    """Killed when its first cut was sent and nobody wrote that down; then its window passes (S7). The next owner cannot
    know whether the sink holds that cut: it stops and says so, every time it is started, and sends nothing. So does one
    that was stopped before it sent, and comes back when the window has passed."""
    c, forget = stand.contract, stand.subject.forget
    if c.window is None or c.position is not PositionIn.DELIVERY_TOPIC:
        raise NotTried("it has no window, or its cuts are not written down")
    if forget is None:
        raise NotTried("nothing was named that makes this sink forget (forget=)")
    with processes(stand) as runs:
        child = runs.start(SEMEL_KILL=f"{Step.ROWS_AFTER}:1", batch=10)
        runs.ends(child, -signal.SIGKILL, f"a process to be killed at {Step.ROWS_AFTER}")
        there = stand.entries(len(stand.read()))  # of how many records the first cut was
        stand.require(0 < len(there) < RECORDS, f"{len(there)} records were sent: nothing is in doubt")
        stand.holds("after a kill when the first cut was sent", there)
        forget(stand.subject.address, stand.suffix)
        for _ in range(2):
            runs.ends(child := runs.start(), 1, "who finds a cut that the sink may hold and has forgotten")
            told = runs.said(child)
            stand.require("may have been sent before" in told, f"it stopped, and said something else:\n{told}")
            stand.holds("after it was to be sent again past the window", there)
    apart = fresh(stand)
    try:
        with processes(apart) as runs:
            late = runs.start(SEMEL_STOP=f"{Step.SINK_BEFORE}:1", batch=10)
            runs.stopped(late, Step.SINK_BEFORE)
            runs.ends(runs.start(batch=10), 0, "the successor of one that stopped before it sent")
            forget(apart.subject.address, apart.suffix)
            late.send_signal(signal.SIGCONT)
            late.wait(WAIT_S)
        apart.holds("after one came back that had stopped before its cut was sent", apart.entries(RECORDS))
    finally:
        apart.close()
        apart.removed()


TRIALS: tuple[Callable[[Stand], None], ...] = (crashes, in_doubt, zombies, paused, forgotten)
