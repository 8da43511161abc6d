"""The storm: a schedule of faults on real processes, while input flows.

Each worker slot and the broker has its queue of faults. A running process has the head of its queue armed (it is
killed or stopped when it reaches the step) or is killed from outside; when it is dead, its next incarnation starts.
A zombie is resumed only when its own partitions were committed further by its successor, and lives until it was
refused. While one slot's fault needs the others to take over, nothing new is armed at them, and the broker is left
alone.

Invariant: what is counted happened: a kill is an exit by SIGKILL seen by us, a zombie a process seen stopped and then
resumed after a commit of another worker.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from semel.host.steps import arm
from semel.ports import Step, TopicPartition
from semel.proof.processes import STEPS, BrokerChild, Child, ProofError
from semel.verify.schedule import (
    DELIVERY_STEPS,
    LEFT_IN_DOUBT,
    SETTLING,
    SOURCE_STEPS,
    TAKEN_OVER,
    Fault,
    Kind,
    Schedule,
)

POLL_S = 0.02
WARM_S = 4.0  # a process that commits nothing for this long is a target all the same
FAULT_TIMEOUT_S = 10.0  # an armed step that is not reached for this long is given up, by a kill
ASK_EVERY_S = 0.3
BATCHES = 2  # written at the sinks by who took over, before its zombie goes on
ZOMBIE_WAIT_S = 25.0
REFUSAL_WAIT_S = 8.0
LATE_S = 2.0  # after its successor was given its partitions; and to be seen afterwards
LATE_MAX_S = 5.0  # beyond the session: within the transaction timeout
FAILURES_MAX = 3
TRIES_MAX = 3
LANE_WAIT_S = 5.0  # a step of an ingest that is not reached for so long: the lane is another worker's
PASSED_ON_MAX = 6


class State(Enum):
    RUNNING = auto()  # no fault armed yet: it warms up
    ARMED = auto()
    STOPPED = auto()
    RESUMED = auto()
    AWAY = auto()  # dead on purpose until another worker has taken over and was killed, too
    IDLE = auto()  # queue empty


@dataclass
class Slot:
    """One worker slot: its process and what is going on with it."""

    child: Child
    queue: deque[Fault]
    state: State = State.RUNNING
    since: float = 0.0
    fault: Fault | None = None
    refusals: int = 0
    commits: int = 0  # its own, when it was started or armed
    before: Mapping[TopicPartition, int] = field(default_factory=dict)  # committed positions when it was stopped
    claims: int = 0  # of the others, then; or how often they were assigned partitions
    batches: int = -1  # of the others at their sinks, when they had claimed; -1: not yet
    asked: float = 0.0
    succeeded: bool = False
    heir: Slot | None = None  # killed as its successor
    tries: int = 0
    passed_on: int = 0
    settled: int = -1  # how often it had reached the step of its settlement when something was to be left in doubt


@dataclass
class Storm:
    """Runs until every queue is empty and at least `crashes` kills had input move since the kill before."""

    slots: Sequence[Slot]
    broker: BrokerChild | None
    broker_queue: deque[Fault]
    crashes: int
    session_s: float
    trickle: Callable[[], None]  # input, at its own pace
    positions: Callable[[], Mapping[TopicPartition, int]]  # committed, as they are now
    outboxes: Callable[[], int]  # how many partitions all sinks' outboxes have
    passed: Callable[[Mapping[TopicPartition, int]], tuple[bool, bool]]  # one topic, all topics went on since
    say: Callable[[str], None]
    commit: Step = Step.COMMIT_AFTER  # what a worker's commit ends with: offsets.after outside exactly-once
    zombies_asked: int = 0
    kills_worker: int = 0
    kills_broker: int = 0
    zombies: int = 0
    refused: int = 0
    moved_kills: int = 0
    struck: dict[Step, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _broker_since: float = 0.0
    _broker_armed: Fault | None = None
    _progress_at_kill: int = -1
    _began: float = 0.0

    # --- what is seen ---

    def progress(self) -> int:
        """Committed transactions of all workers so far: input moved when this grew."""
        return sum(slot.child.hit(self.commit) for slot in self.slots)

    def others(self, slot: Slot, step: Step) -> int:
        return sum(other.child.hit(step) for other in self.slots if other is not slot)

    # --- the storm ---

    def run(self, deadline_s: float) -> None:
        self._began = self._broker_since = time.monotonic()
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
            self.trickle()
            time.sleep(POLL_S)

    def calm_broker(self) -> None:
        """The broker runs, and nothing is armed in it."""
        if self.broker is not None:
            self._disarm(self.broker)
            while not self.broker.alive():
                self._start_broker()

    def calm(self) -> None:
        """Every process runs, nothing is armed: what is left of the input can be finished."""
        self.calm_broker()
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
        if self.refused < self.zombies_asked and self.zombies < 2 * self.zombies_asked:
            # One that was not refused shows nothing, whatever the reason: so there is another.
            self._more(self.slots[self.zombies % len(self.slots)], Fault(Kind.ZOMBIE, Step.OFFSETS_BEFORE))
            return False
        if self.moved_kills < self.crashes:
            # Some kills hit while nothing moved since the one before: they prove nothing, so there are more.
            self._more(self.slots[self.moved_kills % len(self.slots)], Fault(Kind.RANDOM, after=0.3))
            return False
        return True

    def _more(self, slot: Slot, fault: Fault) -> None:
        slot.queue.append(fault)
        self._fresh(slot, start=not slot.child.alive())

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
        slot.commits = slot.child.hit(self.commit)
        slot.heir, slot.succeeded, slot.batches = None, False, -1

    def _needed(self, slot: Slot) -> bool:
        """Whether this one must live on: it takes over from another, or is to."""
        states = (State.STOPPED, State.RESUMED, State.AWAY)
        others = [other for other in self.slots if other is not slot]
        if slot.fault is not None and slot.fault.kind in TAKEN_OVER:
            armed = [o.fault.kind for o in others if o.state is State.ARMED and o.fault is not None]
            if any(kind in TAKEN_OVER for kind in armed):
                return True
        return any(other.state in states for other in others)

    def _tend(self, slot: Slot) -> None:
        now = time.monotonic()
        if slot.state is State.AWAY:
            self._hand_over(slot, now)
            return
        code = slot.child.exit_code()
        if code is not None:
            self._dead(slot, code)
            return
        match slot.state:
            case State.RUNNING:
                assert slot.fault is not None
                commits = slot.child.hit(self.commit) - slot.commits
                if (commits >= min(slot.fault.nth, 3) or now - slot.since > WARM_S) and not self._needed(slot):
                    self._arm(slot)
            case State.ARMED:
                self._wait_for_strike(slot, now)
            case State.STOPPED:
                slot.succeeded = self._superseded(slot, now)
                assert slot.fault is not None
                patience_s = self.session_s + LATE_MAX_S if slot.fault.kind is Kind.LATE else ZOMBIE_WAIT_S
                if slot.fault.step in DELIVERY_STEPS and now - slot.since < self.session_s / 2:
                    slot.claims = self.others(slot, Step.CLAIM_AFTER)  # what is claimed so early is no take-over
                if slot.succeeded or now - slot.since > patience_s:
                    slot.child.signal(signal.SIGCONT)
                    slot.state, slot.since = State.RESUMED, now
            case State.RESUMED:
                self._wait_for_refusal(slot, now)
            case State.IDLE | State.AWAY:
                pass

    def _wait_for_strike(self, slot: Slot, now: float) -> None:
        assert slot.fault is not None
        if slot.fault.kind in (Kind.ZOMBIE, Kind.LATE) and slot.child.stopped():
            slot.state, slot.since = State.STOPPED, now
            self._remember(slot)
            slot.refusals = self._refusals(slot)
            slot.commits = slot.child.hit(self.commit)
            self._strike(slot.fault)
        elif slot.fault.kind in (Kind.RANDOM, Kind.LEAVE):
            moved = slot.child.hit(self.commit) > slot.commits
            # Nobody is asked to leave while a stopped process may hold the lock of a file (FAULTS S14).
            free = slot.fault.kind is Kind.RANDOM or not self._needed(slot)
            if now - slot.since > slot.fault.after * 0.8 and (moved or now - slot.since > WARM_S) and free:
                self._from_outside(slot)
        elif slot.fault.step in SOURCE_STEPS and now - slot.since > LANE_WAIT_S and slot.passed_on < PASSED_ON_MAX:
            self._disarm(slot.child)
            slot.passed_on += 1
            other = self.slots[(self.slots.index(slot) + 1) % len(self.slots)]
            fault = slot.fault
            self._fresh(slot, start=False)
            if other.state is State.IDLE:
                self._more(other, fault)
            else:
                other.queue.appendleft(fault)
        elif now - slot.since > FAULT_TIMEOUT_S:
            # The step was not reached (it has no partitions, or waits for a transaction of another): killed where it
            # stands, and the same again.
            self._disarm(slot.child)
            if slot.tries < TRIES_MAX:
                slot.tries += 1
                slot.queue.appendleft(slot.fault)
            slot.fault = Fault(Kind.RANDOM)
            slot.child.kill()

    def _superseded(self, slot: Slot, now: float) -> bool:
        """Whether the others have gone on in its place."""
        assert slot.fault is not None
        if slot.fault.kind is Kind.LATE:
            if slot.batches < 0 and self.others(slot, Step.TASKS_BEFORE) > slot.claims:
                slot.batches, slot.asked = 0, now
            return slot.batches == 0 and now - slot.asked > LATE_S
        if now - slot.since < self.session_s or now - slot.asked < ASK_EVERY_S:
            return False
        slot.asked = now
        if not slot.before:  # the broker did not answer when it was stopped
            slot.before = self.positions()
        if slot.fault.step in SOURCE_STEPS and self.others(slot, Step.INGEST_CLAIM) <= slot.claims:
            return False
        if slot.fault.step in DELIVERY_STEPS:
            # Who takes over is given all partitions anew and claims all of them, also those that it had.
            if slot.batches < 0 and self.others(slot, Step.CLAIM_AFTER) >= slot.claims + self.outboxes():
                slot.batches = self.others(slot, Step.SINK_AFTER)
            if slot.batches < 0 or self.others(slot, Step.SINK_AFTER) < slot.batches + BATCHES:
                return False
        return self.passed(slot.before)[0]

    def _remember(self, slot: Slot) -> None:
        late = slot.fault is not None and slot.fault.kind is Kind.LATE
        slot.before = self.positions()
        lane = slot.fault is not None and slot.fault.step in SOURCE_STEPS
        claim = Step.TASKS_BEFORE if late else Step.INGEST_CLAIM if lane else Step.CLAIM_AFTER
        slot.claims = self.others(slot, claim)

    def _wait_for_refusal(self, slot: Slot, now: float) -> None:
        assert slot.fault is not None
        refused = self._refusals(slot) > slot.refusals
        if slot.fault.kind is Kind.LATE:
            if now - slot.since < LATE_S:
                return
        elif not refused and now - slot.since < REFUSAL_WAIT_S:
            return
        else:
            self.zombies += slot.succeeded
            self.refused += refused and slot.succeeded
        slot.child.kill()
        self._count(slot, "" if refused else ", not refused")
        self._fresh(slot, start=True)

    def _refusals(self, slot: Slot) -> int:
        hits = slot.child.hits()
        if slot.fault is not None and slot.fault.step in SOURCE_STEPS:
            return hits[Step.SOURCE_FENCED]
        return hits[Step.LOG_FENCED] + hits[Step.SINK_FENCED] + hits[Step.SINK_STALE]

    def _arm(self, slot: Slot) -> None:
        assert slot.fault is not None
        slot.state, slot.since = State.ARMED, time.monotonic()
        slot.commits = slot.child.hit(self.commit)
        if slot.fault.step is not None:
            what = signal.SIGSTOP if slot.fault.kind in (Kind.ZOMBIE, Kind.LATE) else signal.SIGKILL
            arm(slot.child.armed, slot.fault.step, what)
            if slot.fault.step in (Step.CLAIM_AFTER, Step.INGEST_CLAIM):
                # A claim is made once in a life: it is met by the next incarnation.
                slot.child.kill()
                self._count(slot, fault=False)
                slot.child.start()
            if slot.fault.step in SETTLING:
                slot.settled = slot.child.hit(slot.fault.step)
                arm(slot.child.armed, LEFT_IN_DOUBT, signal.SIGKILL)

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
            slot.child.start()
            slot.state = State.RUNNING if slot.fault else State.IDLE
            slot.since = time.monotonic()
            return
        fault = slot.fault
        if fault is not None and fault.step in SETTLING and slot.child.hit(fault.step) == slot.settled:
            # It has left something in doubt: now it takes over from itself, if its heir is not quicker.
            arm(slot.child.armed, LEFT_IN_DOUBT, 0)
            self._count(slot, fault=False)
            slot.settled = -1
            slot.child.start()
            slot.since = time.monotonic()
            return
        if fault is not None:
            self._strike(fault)
        self._count(slot)
        self._disarm(slot.child)
        if fault is not None and fault.kind is Kind.HANDOVER:
            slot.state, slot.since = State.AWAY, time.monotonic()
            self._remember(slot)
            return
        self._fresh(slot, start=True)

    def _hand_over(self, slot: Slot, now: float) -> None:
        """Its partitions go to another, which commits, is killed and has lost its local state; what it comes back
        with is what the changelogs say while the first one's transaction may still be open (P1)."""
        if slot.heir is not None:
            moved = slot.heir.child.hit(self.commit) - slot.heir.commits
            if moved >= 4 or now - slot.since > 2 * WARM_S:
                self._fresh(slot, start=True)
            return
        if now - slot.since < self.session_s or now - slot.asked < ASK_EVERY_S:
            return
        slot.asked = now
        # What waits for the first one's transaction does not go on; 4 s leave time within its timeout.
        if not self.passed(slot.before)[1] and now - slot.since < self.session_s + WARM_S:
            return
        heir = next((s for s in self.slots if s is not slot and s.child.alive()), None)
        if heir is None:
            return
        heir.child.kill()
        self._count(heir, fault=False)
        self._disarm(heir.child)
        for stores in heir.child.state.glob("slot-*/stores"):
            shutil.rmtree(stores)
        heir.child.start()
        heir.commits, heir.since = heir.child.hit(self.commit), now
        heir.state = State.RUNNING if heir.fault else State.IDLE
        slot.heir, slot.since = heir, now

    def _count(self, slot: Slot, more: str = "", *, fault: bool = True) -> None:
        self.kills_worker += 1
        self._moved()
        self.say(
            f"{time.monotonic() - self._began:6.1f} s  {slot.child.name}: "
            f"{slot.fault if fault and slot.fault else 'killed'}{more}"
        )

    def _strike(self, fault: Fault) -> None:
        if fault.step is not None:
            self.struck[fault.step] = self.struck.get(fault.step, 0) + 1

    def _moved(self) -> None:
        progress = self.progress()
        if progress > self._progress_at_kill:
            self.moved_kills += 1
        self._progress_at_kill = progress

    # --- the broker ---

    def _tend_broker(self) -> None:
        if self.broker is None:
            return
        now = time.monotonic()
        code = self.broker.exit_code()
        if code is not None:
            if code != -signal.SIGKILL:
                raise ProofError(f"the broker ended by itself with exit code {code}:\n{self.broker.tail()}")
            fault, self._broker_armed = self._broker_armed, None
            if fault is not None:
                self._strike(fault)
            self.kills_broker += 1
            self._moved()
            self.say(f"{now - self._began:6.1f} s  broker: {fault or 'killed'}")
            self._disarm(self.broker)
            self._start_broker()
            return
        if self._broker_armed is None and self.broker_queue:
            # Spread over the storm: one of the broker's for each few of the workers' that are left. Not while somebody
            # is stopped: a connection lost meanwhile would turn its refusal into an unknown.
            left = sum(len(slot.queue) for slot in self.slots)
            pause = 0.5 if left < 2 * len(self.broker_queue) else 1.5
            quiet = all(slot.state in (State.RUNNING, State.ARMED, State.IDLE) for slot in self.slots)
            if now - self._broker_since > pause and quiet:
                self._broker_armed = self.broker_queue.popleft()
                self._broker_since = now
                if self._broker_armed.step is None:
                    self.broker.kill()
                else:
                    arm(self.broker.armed, self._broker_armed.step, signal.SIGKILL)
        elif self._broker_armed is not None and now - self._broker_since > FAULT_TIMEOUT_S:
            self.broker.kill()

    def _start_broker(self) -> None:
        assert self.broker is not None
        tries = 0
        while True:
            self.broker.start()
            if self.broker.wait_ready():
                break
            tries += 1
            if tries > 5:
                raise ProofError(f"the broker does not start again:\n{self.broker.tail()}")
        self._broker_since = time.monotonic()


def storm_of(schedule: Schedule, children: Sequence[Child], broker: BrokerChild | None, **rest: object) -> Storm:
    slots = [Slot(child, deque(queue)) for child, queue in zip(children, schedule.workers, strict=True)]
    return Storm(slots, broker, deque(schedule.broker), **rest)  # type: ignore[arg-type]
