"""The storm: a schedule of faults on real processes, while input flows.

Each worker slot and the broker has its queue of faults. A running process has the head of its queue armed (it is
killed or stopped when it reaches the step) or is killed from outside; when it is dead, its next incarnation starts.
A zombie is resumed only after its successor has committed, and is let live until it was refused.

Invariant: what is counted happened: a kill is an exit by SIGKILL seen by us, a zombie a process seen stopped and then
resumed after a commit of another worker.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from semel.host.steps import arm
from semel.ports import Step, TopicPartition
from semel.proof.processes import STEPS, BrokerChild, Child, ProofError
from semel.verify.schedule import SINK_STEPS, Fault, Kind, Schedule

POLL_S = 0.02
STALLED_S = 1.5  # no fault struck for this long: more input
FAULT_TIMEOUT_S = 25.0  # an armed step that is not reached for this long is given up, by a kill
ZOMBIE_WAIT_S = 40.0
REFUSAL_WAIT_S = 12.0
FAILURES_MAX = 3


class State(Enum):
    RUNNING = auto()  # no fault armed yet: it warms up
    ARMED = auto()
    STOPPED = auto()
    RESUMED = auto()
    AWAY = auto()  # dead on purpose until another worker has taken over
    IDLE = auto()  # queue empty


@dataclass
class Slot:
    """One worker slot: its process and what is going on with it."""

    child: Child
    queue: deque[Fault]
    state: State = State.RUNNING
    since: float = 0.0
    fault: Fault | None = None
    before: Mapping[TopicPartition, int] = field(default_factory=dict)  # committed positions when it was stopped
    asked: float = 0.0
    succeeded: bool = False
    refusals: int = 0
    commits: int = 0  # its own, when it was started


@dataclass
class Storm:
    """Runs until every queue is empty and at least `crashes` kills had input move since the kill before."""

    slots: Sequence[Slot]
    broker: BrokerChild | None
    broker_queue: deque[Fault]
    crashes: int
    session_s: float
    feed: Callable[[], None]  # lets the next slice of input through
    positions: Callable[[], Mapping[TopicPartition, int]]  # committed, as they are now
    passed: Callable[[Mapping[TopicPartition, int]], bool]  # whether all that waited then was committed further
    say: Callable[[str], None]
    kills_worker: int = 0
    kills_broker: int = 0
    zombies: int = 0
    refused: int = 0
    moved_kills: int = 0
    struck: dict[Step, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _last_strike: float = 0.0
    _broker_since: float = 0.0
    _broker_armed: Fault | None = None
    _progress_at_kill: int = -1

    # --- what is seen ---

    def progress(self) -> int:
        """Committed transactions of all workers so far: input moved when this grew."""
        return sum(slot.child.hit(Step.COMMIT_AFTER) for slot in self.slots)

    # --- the storm ---

    def run(self, deadline_s: float) -> None:
        self._last_strike = self._broker_since = time.monotonic()
        for slot in self.slots:
            self._fresh(slot, start=not slot.child.alive())
        ended = time.monotonic() + deadline_s
        while not self._over():
            if time.monotonic() > ended:
                raise ProofError(
                    f"the storm did not end within {deadline_s:.0f} s: {self.kills_worker} workers and "
                    f"{self.kills_broker} brokers killed of {self.crashes}. The workers said last:\n" + self._tails()
                )
            self._tend_broker()
            for slot in self.slots:
                self._tend(slot)
            if time.monotonic() - self._last_strike > STALLED_S:
                self.feed()
                self._last_strike = time.monotonic()
            time.sleep(POLL_S)

    def calm(self) -> None:
        """Every process runs, nothing is armed: what is left of the input can be finished."""
        if self.broker is not None:
            self._disarm(self.broker)
            while not self.broker.alive():
                self._start_broker(None)
        for slot in self.slots:
            self._disarm(slot.child)
            if slot.state in (State.STOPPED, State.RESUMED):
                slot.child.signal(signal.SIGCONT)
            if not slot.child.alive():
                slot.child.start()
            slot.state = State.IDLE

    def _over(self) -> bool:
        if any(slot.state is not State.IDLE for slot in self.slots) or self.broker_queue or self._broker_armed:
            return False
        if self.moved_kills < self.crashes:
            # Some kills hit while nothing moved since the one before: they prove nothing, so there are more.
            for slot in self.slots:
                slot.queue.append(Fault(Kind.RANDOM, after=0.3))
                self._fresh(slot, start=not slot.child.alive())
            return False
        return True

    def _tails(self) -> str:
        return "\n".join(f"--- {slot.child.name} ({slot.state.name})\n{slot.child.tail()}" for slot in self.slots)

    # --- workers ---

    def _fresh(self, slot: Slot, *, start: bool) -> None:
        """The next fault of the queue, on a new incarnation or on the one that runs."""
        if start:
            slot.child.start()
        slot.fault = slot.queue.popleft() if slot.queue else None
        slot.state = State.RUNNING if slot.fault else State.IDLE
        slot.since = time.monotonic()
        slot.commits = slot.child.hit(Step.COMMIT_AFTER)

    def _tend(self, slot: Slot) -> None:
        code = slot.child.exit_code()
        now = time.monotonic()
        if slot.state is State.AWAY:
            # Long enough for its session to end and for another worker to have begun with its partitions.
            if now - slot.since > self.session_s + 1.0:
                heir = next((s for s in self.slots if s is not slot and s.child.alive()), None)
                if heir is not None and heir.state in (State.RUNNING, State.ARMED, State.IDLE):
                    queued = [f for f in (heir.fault,) if f is not None]
                    heir.queue.extendleft(queued)
                    heir.child.kill()
                    self._count(heir)
                    self._fresh(heir, start=True)
                self._fresh(slot, start=True)
            return
        if code is not None:
            self._dead(slot, code)
            return
        match slot.state:
            case State.RUNNING:
                assert slot.fault is not None
                warm = slot.child.hit(Step.COMMIT_AFTER) - slot.commits >= min(slot.fault.nth - 1, 2)
                if (warm and now - slot.since > 0.2) or now - slot.since > 4:
                    self._arm(slot)
            case State.ARMED:
                assert slot.fault is not None
                if slot.fault.kind is Kind.ZOMBIE and slot.child.stopped():
                    slot.state, slot.since = State.STOPPED, now
                    self.feed()
                    slot.before = self.positions()
                    slot.refusals = self._refusals(slot)
                    self._strike(slot.fault)
                elif slot.fault.kind in (Kind.RANDOM, Kind.LEAVE):
                    moved = slot.child.hit(Step.COMMIT_AFTER) > slot.commits
                    if now - slot.since > slot.fault.after * 0.8 and (moved or now - slot.since > 3):
                        self._from_outside(slot)
                elif now - slot.since > FAULT_TIMEOUT_S:
                    self._disarm(slot.child)
                    slot.child.kill()
            case State.STOPPED:
                # Resumed only when its partitions have been committed further by someone else.
                if now - slot.since > self.session_s and now - slot.asked > 0.4:
                    slot.asked = now
                    slot.succeeded = self.passed(slot.before)
                    if slot.succeeded or now - slot.since > ZOMBIE_WAIT_S:
                        slot.child.signal(signal.SIGCONT)
                        slot.state, slot.since = State.RESUMED, now
            case State.RESUMED:
                refused = self._refusals(slot) - slot.refusals
                if refused > 0 or now - slot.since > REFUSAL_WAIT_S:
                    self.zombies += slot.succeeded
                    self.refused += min(refused, 1)
                    slot.child.kill()
                    self._count(slot)
                    self._fresh(slot, start=True)
            case State.IDLE | State.AWAY:
                pass

    def _refusals(self, slot: Slot) -> int:
        hits = slot.child.hits()
        return hits[Step.LOG_FENCED] + hits[Step.SINK_FENCED]

    def _arm(self, slot: Slot) -> None:
        assert slot.fault is not None
        slot.state, slot.since = State.ARMED, time.monotonic()
        slot.commits = slot.child.hit(Step.COMMIT_AFTER)
        if slot.fault.step is not None:
            what = signal.SIGSTOP if slot.fault.kind is Kind.ZOMBIE else signal.SIGKILL
            arm(slot.child.armed, slot.fault.step, what)
            if slot.fault.step in SINK_STEPS or slot.child.hit(Step.COMMIT_AFTER) == slot.commits:
                self.feed()

    def _disarm(self, child: Child) -> None:
        for step in STEPS:
            arm(child.armed, step, 0)

    def _from_outside(self, slot: Slot) -> None:
        assert slot.fault is not None
        if slot.fault.kind is Kind.RANDOM:
            slot.child.kill()
            return
        code = slot.child.leave()
        if code != 0:
            self.failures.append(f"{slot.child.name} left with exit code {code}:\n{slot.child.tail()}")
        self.say(f"{slot.child.name}: left when asked to")
        self._fresh(slot, start=True)

    def _dead(self, slot: Slot, code: int) -> None:
        if code != -signal.SIGKILL:
            self.failures.append(f"{slot.child.name} ended by itself with exit code {code}:\n{slot.child.tail()}")
            if len(self.failures) > FAILURES_MAX:
                raise ProofError("workers end by themselves:\n" + "\n".join(self.failures))
            queued = slot.fault
            slot.child.start()
            slot.state = State.RUNNING if queued else State.IDLE
            slot.since = time.monotonic()
            return
        fault = slot.fault
        if fault is not None:
            self._strike(fault)
        self._count(slot)
        self._disarm(slot.child)
        if fault is not None and fault.kind is Kind.HANDOVER:
            slot.state, slot.since = State.AWAY, time.monotonic()
            return
        self._fresh(slot, start=True)

    def _count(self, slot: Slot) -> None:
        self.kills_worker += 1
        self._moved()
        self.say(f"{slot.child.name}: {slot.fault.kind.value if slot.fault else 'killed'}"
                 + (f" ({slot.fault.step.value})" if slot.fault and slot.fault.step else ""))  # fmt: skip

    def _strike(self, fault: Fault) -> None:
        if fault.step is not None:
            self.struck[fault.step] = self.struck.get(fault.step, 0) + 1

    def _moved(self) -> None:
        progress = self.progress()
        if progress > self._progress_at_kill:
            self.moved_kills += 1
        self._progress_at_kill = progress
        self._last_strike = time.monotonic()
        self.feed()

    # --- the broker ---

    def _tend_broker(self) -> None:
        if self.broker is None:
            return
        now = time.monotonic()
        code = self.broker.exit_code()
        if code is not None:
            if code != -signal.SIGKILL:
                raise ProofError(f"the broker ended by itself with exit code {code}:\n{self.broker.tail()}")
            if self._broker_armed is not None:
                self._strike(self._broker_armed)
            self._broker_armed = None
            self.kills_broker += 1
            self._moved()
            self.say("broker: killed")
            self._disarm(self.broker)
            self._start_broker(None)
            return
        if self._broker_armed is None and self.broker_queue:
            # Spread over the storm: one of the broker's for each of the workers' that are left.
            left = sum(len(slot.queue) for slot in self.slots)
            pause = 0.5 if left < 2 * len(self.broker_queue) else 1.5
            if now - self._broker_since > pause:
                self._broker_armed = self.broker_queue.popleft()
                self._broker_since = now
                if self._broker_armed.step is None:
                    self.broker.kill()
                else:
                    arm(self.broker.armed, self._broker_armed.step, signal.SIGKILL)
        elif self._broker_armed is not None and now - self._broker_since > FAULT_TIMEOUT_S:
            self.broker.kill()

    def _start_broker(self, armed: None) -> None:
        assert self.broker is not None
        tries = 0
        while True:
            self.broker.start(armed)
            if self.broker.wait_ready():
                break
            tries += 1
            if tries > 5:
                raise ProofError(f"the broker does not start again:\n{self.broker.tail()}")
        self._broker_since = time.monotonic()


def storm_of(schedule: Schedule, children: Sequence[Child], broker: BrokerChild | None, **rest: object) -> Storm:
    slots = [Slot(child, deque(queue)) for child, queue in zip(children, schedule.workers, strict=True)]
    return Storm(slots, broker, deque(schedule.broker), **rest)  # type: ignore[arg-type]
