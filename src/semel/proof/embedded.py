"""The storm on the embedded log: one process and a locked folder. There is no second owner at the log, so a zombie is
made by hand: its process is stopped, its folder copied, the successor runs on the copy. The fence is the sink's.

Input is let through between two incarnations, while nobody holds the folder.

Invariant: what is read back at the end is the folder that the last successor left; the folder of a zombie is never
looked at again.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semel.contract import Contract, Settlement
from semel.host.embedded import EmbeddedLog
from semel.host.engine import Engine
from semel.host.steps import arm
from semel.ports import Connection, NewTopic, Step, TopicPartition
from semel.proof.feeding import Feeding
from semel.proof.processes import STEPS, Child, ProofError, semel_command
from semel.proof.world import PARTITIONS, read_back
from semel.sources.positions import ENDING as POSITIONS_ENDING
from semel.streams import graph as g
from semel.verify.oracle import Committed, input_record
from semel.verify.schedule import Fault, Kind
from semel.verify.workload import Given

FAULT_WAIT_S = 6.0
QUIET_S = 1.0
START_S = 30.0
SETTLE_S = 60.0
REFUSAL_WAIT_S = 15.0
SUCCESSOR_WAIT_S = 15.0
OWNER_WAIT_S = 5.0
ZOMBIES_MISSED_MAX = 3


@dataclass
class EmbeddedStorm:
    """The world and the storm in one: the log's folder is its own process's, so they take turns."""

    folder: Path
    app_file: str
    mode: str
    prefix: str
    graph: g.Graph
    queue: deque[Fault]
    crashes: int
    sinks: Mapping[str, Connection]
    say: Callable[[str], None]
    commit: Step = Step.COMMIT_AFTER  # what a worker's commit ends with: offsets.after outside exactly-once
    kills_worker: int = 0
    kills_broker: int = 0
    zombies: int = 0
    refused: int = 0
    missed: int = 0  # zombies that had no successor, and so proved nothing
    moved_kills: int = 0
    fed: int = 0
    given: dict[str, Counter[bytes]] = field(default_factory=dict)
    rounds: int = 1
    struck: dict[Step, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    history: dict[str, list[int]] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    feeding: Feeding = field(init=False)
    _begun: set[str] = field(default_factory=set)  # topics of sources that have a position
    _input: deque[tuple[str, Given]] = field(default_factory=deque)
    _slice: int = 1
    _copies: int = 0
    _moved_at_kill: int = -1
    _claimed_before: int = 0  # by earlier incarnations of who runs now

    def __post_init__(self) -> None:
        self.feeding = Feeding(self.graph, self.prefix, lambda name: name in self._begun)

    @property
    def data(self) -> Path:
        return self.folder / f"log-{self._copies}"

    # --- input ---

    def prepare(self, workload: Mapping[str, list[Given]], slices: int) -> None:
        self._input.extend((name, one) for name, given in workload.items() for one in given)
        self._slice = max(1, len(self._input) // max(1, slices))
        topics = {n.topic.name: n.topic for n in self.graph.nodes if isinstance(n, g.Read)}
        engine = Engine(self.data)
        log = EmbeddedLog(engine)
        log.create([NewTopic(self.prefix + name, topic.partitions or PARTITIONS) for name, topic in topics.items()])
        log.close()
        engine.close()
        self.feeding.prepare()

    def feed(self, slices: int = 1) -> None:
        """The next slice of input, round and round. Nobody may hold the folder."""
        engine = Engine(self.data)
        log = EmbeddedLog(engine)
        self._begun |= {name for name in self.feeding.topics if self._has_position(log, name)}
        for _ in range(min(self._slice * slices, len(self._input))):
            name, one = self._input[0]
            self._input.rotate(-1)
            self.fed += 1
            if name in self.feeding.topics:
                self.feeding.put(name, one)
                continue
            log.writer(self.prefix + name)(-1, one.key, one.value, one.timestamp, None)
            self.given.setdefault(name, Counter())[input_record(one.key, one.value)] += 1
        self.feeding.end()  # nothing is added while the app runs
        log.flush()
        log.close()
        engine.close()

    def _has_position(self, log: EmbeddedLog, name: str) -> bool:
        at = TopicPartition(f"{self.prefix}{name}{POSITIONS_ENDING}", 0)
        return at.topic in log.topics() and any(r.offsets for r in log.read(at, 0, log.ends([at])[at]))

    # --- the storm ---

    def run(self) -> None:
        child = self._child()
        while self.queue or self.moved_kills < self.crashes:
            fault = self.queue.popleft() if self.queue else Fault(Kind.RANDOM, after=0.3)
            self.feed()
            self._claimed_before = child.hit(Step.CLAIM_AFTER)
            child.start()
            if fault.step is not None:
                arm(child.armed, fault.step, signal.SIGSTOP if fault.kind is Kind.ZOMBIE else signal.SIGKILL)
            child = self._strike(child, fault)

    def _child(self) -> Child:
        command = semel_command(
            "run", self.app_file, "--on", f"embedded:{self.data}", "--mode", self.mode,
            "--state", str(self.folder / f"state-{self._copies}"),
        )  # fmt: skip
        env = {"SEMEL_PREFIX": self.prefix, "SEMEL_TRACE": "1"}
        child = Child(f"worker-{self._copies + 1}", self.folder, command, env)
        self.children.append(child)
        return child

    def _strike(self, child: Child, fault: Fault) -> Child:
        """Waits until the fault has struck; returns the child that goes on."""
        began, commits, running = time.monotonic(), child.hit(self.commit), False
        while True:
            if not running and (running := child.running() or time.monotonic() - began > START_S):
                began = time.monotonic()
            code = child.exit_code()
            if code == -signal.SIGKILL:
                self._count(child, fault)
                return child
            if code is not None:
                self.failures.append(f"{child.name} ended by itself with exit code {code}:\n{child.tail()}")
                if len(self.failures) > 3:
                    raise ProofError("the worker ends by itself:\n" + "\n".join(self.failures))
                return child
            waited = time.monotonic() - began if running else 0.0
            if fault.kind is Kind.ZOMBIE and child.stopped():
                self._struck(fault)
                return self._succeed(child)
            moved = child.hit(self.commit) > commits
            if fault.kind is Kind.LEAVE and (moved or waited > FAULT_WAIT_S):
                if (code := child.leave()) != 0:
                    self.failures.append(f"{child.name} left with exit code {code}:\n{child.tail()}")
                return child
            if (fault.kind is Kind.RANDOM and moved and waited > 0.3 + fault.after) or waited > FAULT_WAIT_S:
                if fault.kind is not Kind.RANDOM:  # its step was not reached with this input
                    fault = Fault(Kind.RANDOM)
                child.kill()
            time.sleep(0.02)

    def _count(self, child: Child, fault: Fault) -> None:
        for step in STEPS:
            arm(child.armed, step, 0)
        self._struck(fault)
        self.kills_worker += 1
        moved = self.hit(self.commit)
        self.moved_kills += moved > self._moved_at_kill
        self._moved_at_kill = moved
        self.say(f"{child.name}: {fault.kind.value}" + (f" ({fault.step.value})" if fault.step else ""))

    def _struck(self, fault: Fault) -> None:
        if fault.step is not None:
            self.struck[fault.step] = self.struck.get(fault.step, 0) + 1

    def hit(self, step: Step) -> int:
        return sum(child.hit(step) for child in self.children)

    def _succeed(self, zombie: Child) -> Child:
        """The zombie's folder is copied; the successor works on the copy until it has committed at log and sink. Both
        are dead afterwards: what goes on is the next incarnation, when the folder has been fed."""
        old, owns = self._copied(), self._owns(zombie)
        if not owns and self._stopped_as_owner(zombie):
            shutil.rmtree(self.data)
            self._copies -= 1
            old, owns = self._copied(), True
        self.feed()
        successor, claims = self._child(), self._outboxes()
        successor.start()
        deadline = time.monotonic() + SUCCESSOR_WAIT_S
        while not (superseded := self._has_succeeded(successor, claims)):
            if successor.exit_code() is not None:
                raise ProofError(f"the successor of a zombie does not go on:\n{successor.tail(30)}")
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if superseded and owns:
            self._resume(zombie)
        else:  # no sink got anything from the successor: the zombie may own one still; or it would claim one now
            zombie.kill()
            why = (
                f"no successor got on at every sink within {SUCCESSOR_WAIT_S:.0f} s" if owns else "it owned no sink yet"
            )
            self.say(f"{zombie.name}: stopped; {why}")
            self._count(zombie, Fault(Kind.RANDOM))
            if self.missed < ZOMBIES_MISSED_MAX:  # it may have stopped with a file's lock in its hand: another one
                self.missed += 1
                self.queue.append(Fault(Kind.ZOMBIE, Step.OFFSETS_BEFORE))
        successor.kill()
        self._count(successor, Fault(Kind.RANDOM))
        shutil.rmtree(old, ignore_errors=True)
        return successor

    def _copied(self) -> Path:
        """Goes on with a copy of the folder; returns the former one."""
        old = self.data
        self._copies += 1
        shutil.copytree(old, self.data)
        (self.data / "lock").unlink(missing_ok=True)
        return old

    def _owns(self, zombie: Child) -> bool:
        """Whether it has claimed every partition of every sink. Resumed before it has, it would claim after its
        successor, rightly, and the two copies of the log would each take the sink from the other."""
        return zombie.hit(Step.CLAIM_AFTER) - self._claimed_before >= self._outboxes()

    def _stopped_as_owner(self, zombie: Child) -> bool:
        """Lets it go on until it owns its sinks, and stops it again. False: it did not come to it, or ended."""
        claims = self._outboxes()
        zombie.signal(signal.SIGCONT)
        ended = time.monotonic() + OWNER_WAIT_S
        while zombie.hit(Step.CLAIM_AFTER) - self._claimed_before < claims:
            if not zombie.alive() or time.monotonic() > ended:
                zombie.kill()
                return False
            time.sleep(0.01)
        zombie.signal(signal.SIGSTOP)
        while zombie.alive() and not zombie.stopped():
            time.sleep(0.005)
        return zombie.alive()

    def _has_succeeded(self, successor: Child, claims: int) -> bool:
        """Committed at the log and at a sink, with every partition of every outbox claimed: a sink that gets nothing
        is its own all the same, and the zombie is refused there."""
        hits = successor.hits()
        return bool(hits[self.commit] and hits[Step.SINK_AFTER]) and hits[Step.CLAIM_AFTER] >= claims

    def _outboxes(self) -> int:
        """How many partitions are to be claimed at the sinks; nobody may hold the folder."""
        engine = Engine(self.data)
        log = EmbeddedLog(engine)
        topics = log.topics()
        names = [
            self.prefix + w.outbox for w in self.graph.writes() if w.sink is not None and _claimed(w.sink.contract)
        ]
        log.close()
        engine.close()
        return sum(topics[name].partitions for name in names if name in topics)

    def _resume(self, zombie: Child) -> None:
        before = zombie.hit(Step.SINK_FENCED)
        zombie.signal(signal.SIGCONT)
        ended = time.monotonic() + REFUSAL_WAIT_S
        while zombie.alive() and zombie.hit(Step.SINK_FENCED) == before and time.monotonic() < ended:
            time.sleep(0.05)
        self.zombies += 1
        # Refused in the middle of its work, or, when it had not claimed yet, at its claim: then it ends with an error.
        refused = zombie.hit(Step.SINK_FENCED) > before or zombie.exit_code() == 1
        self.refused += refused
        if not refused and self.missed < ZOMBIES_MISSED_MAX:  # it had nothing left to write: another one
            self.missed += 1
            self.queue.append(Fault(Kind.ZOMBIE, Step.OFFSETS_BEFORE))
        zombie.kill()
        self.say(f"{zombie.name}: stopped, resumed after its successor's commit on a copy of its folder")

    # --- the end ---

    def finish(self, alive: Child) -> None:
        """The rest of the input, without faults, until nothing moves any more."""
        left = max(0, len(self._input) - self.fed)
        if left:
            self.feed(slices=left // self._slice + 1)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            if not alive.alive():
                alive.start()
            seen, quiet_since = (-1, -1, -1), time.monotonic()
            while time.monotonic() - quiet_since < QUIET_S or not alive.running():
                # Claims, too: on a busy machine all of them together take longer than what is called quiet.
                now = (alive.hit(self.commit), alive.hit(Step.SINK_AFTER), alive.hit(Step.CLAIM_AFTER))
                if now != seen:
                    seen, quiet_since = now, time.monotonic()
                if alive.exit_code() is not None:
                    raise ProofError(f"{alive.name} ended by itself:\n{alive.tail(30)}")
                time.sleep(0.1)
            if (code := alive.leave()) != 0:
                self.failures.append(f"{alive.name} left with exit code {code}:\n{alive.tail()}")
            if waiting := self.feeding.waiting:
                self.feed(slices=0)
                if self.feeding.waiting < waiting:
                    continue  # what had to wait for a first position is there now
            if self._settled():
                return
        raise ProofError(f"the app did not finish its input within {SETTLE_S:.0f} s:\n{alive.tail(30)}")

    def _settled(self) -> bool:
        committed = self.committed()
        if any(len(committed.topic(name)) < count for name, count in self.feeding.added.items()):
            return False
        sources = {name for sub in self.graph.subtopologies for name in sub.sources}
        taken = all(committed.positions.get(at, 0) >= end for at, end in committed.ends.items() if at.topic in sources)
        return taken and all(self._delivered(name, committed) for name in self.graph.sinks)

    def _delivered(self, sink: str, committed: Committed) -> bool:
        """By the delivery's group offsets, which it tells when it leaves."""
        outbox = next(w.outbox for w in self.graph.writes() if w.sink is not None and w.sink.name == sink)
        ends = {TopicPartition(self.prefix + outbox, at.partition): end
                for at, end in committed.ends.items() if at.topic == outbox and end}  # fmt: skip
        engine = Engine(self.data)
        log = EmbeddedLog(engine, group=f"{self.prefix}{self.graph.app}.{sink}")
        try:
            positions = log.committed(list(ends))
            return all((at := positions[where]) is not None and at.offset >= end for where, end in ends.items())
        finally:
            log.close()
            engine.close()

    def committed(self) -> Committed:
        engine = Engine(self.data)
        log = EmbeddedLog(engine, group=self.prefix + self.graph.app)
        try:
            topics = log.topics()
            partitions = [
                TopicPartition(self.prefix + name, p)
                for sub in self.graph.subtopologies
                for name in sub.sources
                for p in range(topics[self.prefix + name].partitions if self.prefix + name in topics else 0)
            ]
            return read_back(log, self.graph, self.prefix, partitions)
        finally:
            log.close()
            engine.close()


def _claimed(c: Contract) -> bool:
    """Whether a claim at the sink ends what a former owner on another copy of the log could still do there. Before it
    is made the former owner goes on rightly, and the copy has gone another way than the sink."""
    return c.remembers_position or c.settlement is Settlement.DECIDED
