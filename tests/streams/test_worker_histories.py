"""Random histories of two workers over a log with Kafka's rules: kills, zombies, rebalances, commits that are unknown
or refused, at any moment. Whatever happened, the end is the fold of the input, each input once (laws 4, 5 and 6).

Each history is a function of its seed. `BUGS` are planted: each must be found among the same seeds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from semel.app import App
from semel.ports import Fenced, NotDone, Outcome, Position, Step, TopicPartition, Unknown
from semel.streams.builder import Builder
from semel.streams.state import MemoryStore
from semel.streams.task import Task
from semel.streams.topic import Topic
from semel.streams.worker import Worker
from tests.support.memlog import MemBroker, MemLog

SEEDS = range(60)
STEPS = 120
orders = Topic("orders", key=str, value=int)
totals = Topic("totals", key=str, value=int)
ones = Topic("ones", key=str, value=int)


def build(b: Builder) -> None:
    """A state on the topic itself, and one behind a repartition topic."""
    read = b.read(orders)
    read.count(name="counts").changes(coalesce=True).write(ones)
    keyed = read.key_by(lambda order: f"m{order % 3}")
    keyed.fold(0, lambda total, order: total + order, name="sums").changes().write(totals)


GRAPH = App("shop", build).graph()
SOURCES = ["orders", "shop-sums-repartition"]


class Killed(BaseException):
    """A kill -9 at a step."""


class Member:
    """One machine with its worker, running, stopped or dead. It is the worker's `Steps`, too."""

    def __init__(self, name: str, broker: MemBroker) -> None:
        self.name, self.broker = name, broker
        self.kill_at: Step | None = None
        self.disk: dict[tuple[str, int], MemoryStore] = {}
        self.worker: Worker | None = None
        self.stopped = False

    def reached(self, step: Step) -> None:
        if step is self.kill_at:
            raise Killed

    def start(self, now_ms: int) -> None:
        self.kill_at = None
        self.log = MemLog(self.broker, self.name, self, batch=3)
        self.worker = Worker(GRAPH, self.log, self.store, steps=self, commit_interval_ms=50)
        self.worker.start(now_ms)
        self.stopped = False

    def store(self, state: str, partition: int) -> MemoryStore:
        return self.disk.setdefault((state, partition), MemoryStore())

    @property
    def living(self) -> bool:
        return self.worker is not None and not self.stopped


class History:
    """Draws what happens next."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.broker = MemBroker()
        self.broker.create("orders", 3)
        self.broker.when_waiting = self.waiting
        self.members = [Member("a", self.broker), Member("b", self.broker)]
        self.now_ms = 1_000_000
        self.put = 0
        self.sums: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        for member in self.members:
            member.start(self.now_ms)
        self.rebalance()

    def waiting(self) -> None:
        """Time passes while somebody waits: transactions of those who cannot go on themselves time out."""
        for member in self.members:
            if not member.living:
                self.broker.expire(member.name)

    def fill(self) -> None:
        for _ in range(self.dice.randint(1, 8)):
            key = f"k{self.dice.randint(0, 4)}"
            self.broker.put("orders", key.encode(), b"%d" % self.put, ms=self.put)
            self.counts[key] += 1
            self.sums[f"m{self.put % 3}"] += self.put
            self.put += 1

    def rebalance(self) -> None:
        """As a group coordinator does it: the living give up, then the partitions are dealt anew."""
        self.broker.assign({})
        for member in self.members:
            if member.living:
                self.round(member)
        living = [member for member in self.members if member.living]
        deal: dict[str, list[TopicPartition]] = {member.name: [] for member in living}
        for p in range(3):
            for topic in SOURCES:
                if living:
                    owner = living[(p + self.put) % len(living)]
                    deal[owner.name].append(TopicPartition(topic, p))
        self.broker.assign(deal)

    def round(self, member: Member) -> None:
        self.now_ms += self.dice.choice((0, 5, 20, 60))
        assert member.worker is not None
        self.guarded(member, lambda worker: worker.run_once(self.now_ms, 0.0))

    def guarded(self, member: Member, do: Callable[[Worker], object]) -> None:
        """Runs it; a kill ends the worker as it stands, nothing is cleaned up."""
        assert member.worker is not None
        member.worker._give_up = lambda: None  # type: ignore[method-assign]
        try:
            do(member.worker)
        except Killed:
            member.worker, member.kill_at = None, None

    def one(self) -> None:
        member = self.dice.choice(self.members)
        match self.dice.choices(
            ("round", "fill", "kill", "kill at", "start", "stop", "go on", "rebalance", "outcome", "expire"),
            (60, 12, 3, 5, 6, 4, 6, 6, 4, 2),
        )[0]:
            case "round" if member.living:
                self.round(member)
            case "fill":
                self.fill()
            case "kill":
                member.worker = None
                if self.dice.random() < 0.7:
                    self.rebalance()
            case "kill at" if member.living:
                member.kill_at = self.dice.choice(list(Step)[:6])
            case "start" if member.worker is None:
                member.start(self.now_ms)
                self.rebalance()
            case "stop" if member.living:
                member.stopped = True
                if self.dice.random() < 0.7:
                    self.rebalance()
            case "go on" if member.stopped and member.worker is not None:
                member.stopped = False
                if self.dice.random() < 0.8:  # in the middle of what it was doing
                    self.guarded(member, lambda worker: worker._commit())
                if member.living:
                    self.round(member)
                self.rebalance()
            case "rebalance":
                self.rebalance()
            case "outcome" if member.living:
                member.log.next_outcome = self.dice.choice((Unknown("?"), NotDone("no"), Fenced("moved")))
            case "expire" if not member.living:
                self.broker.expire(member.name)

    def settle(self) -> None:
        for member in self.members:
            member.stopped, member.kill_at = False, None
            if member.worker is None:
                member.start(self.now_ms)
            member.log.next_outcome = None
        self.rebalance()
        for _ in range(120):
            for member in self.members:
                self.now_ms += 30
                self.round(member)
                member.log.next_outcome = None

    def run(self) -> list[str]:
        """What is wrong in the end."""
        for _ in range(STEPS):
            self.one()
        self.settle()
        wrong = []
        committed = self.broker.committed
        last = {key.decode(): int(value) for key, value in committed("totals") if key and value}
        if last != dict(self.sums):
            wrong.append(f"totals {last} instead of {dict(self.sums)}")
        if len(committed("totals")) != self.put:
            wrong.append(f"{len(committed('totals'))} updates of {self.put} inputs")
        last = {key.decode(): int(value) for key, value in committed("ones") if key and value}
        if last != dict(self.counts):
            wrong.append(f"counts {last} instead of {dict(self.counts)}")
        for key in self.sums:  # each committed value is the one before it and one more input
            values = [int(v or 0) for k, v in committed("totals") if k == key.encode()]
            if len(set(values)) != len(values) and self.put > 1 and sorted(values) != values:
                wrong.append(f"{key}: {values}")
        return wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_end_is_the_fold_of_the_input(seed: int) -> None:
    """Kills, zombies, rebalances and unknown commits change nothing that is committed."""
    assert History(seed).run() == []


def test_a_seed_replays_its_history() -> None:
    """The same seed gives the same log, byte for byte."""

    def logs(seed: int) -> Any:
        history = History(seed)
        history.run()
        return history.broker.logs

    assert logs(7) == logs(7)


class _Dropped:
    """Planted bugs, by what the worker forgets."""

    @staticmethod
    def commit_after_revoke(patch: pytest.MonkeyPatch) -> None:
        real = Worker.revoked

        def revoked(self: Worker, partitions: Sequence[TopicPartition]) -> None:
            for task in self._ready():
                task.touched = False  # what was processed is left to a later transaction, without its offsets
            real(self, partitions)

        patch.setattr(Worker, "revoked", revoked)

    @staticmethod
    def restore_to_the_lso(patch: pytest.MonkeyPatch) -> None:
        def ends(self: MemLog, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            return {at: self.broker.stable_end(at) for at in partitions}

        patch.setattr(MemLog, "ends", ends)

    @staticmethod
    def an_empty_offset_list(patch: pytest.MonkeyPatch) -> None:
        real = MemLog.commit

        def commit(self: MemLog, positions: Mapping[TopicPartition, Position]) -> Outcome:
            transaction = self._transaction
            assert transaction is not None
            if self._generation != self.broker.generation and transaction.decided is None:
                self._generation = self.broker.generation  # nothing to compare: the zombie passes
                outcome = real(self, positions)
                self._generation = -2
                return outcome
            return real(self, positions)

        patch.setattr(MemLog, "commit", commit)

    @staticmethod
    def tasks_live_on_after_an_abort(patch: pytest.MonkeyPatch) -> None:
        def start_over(self: Worker) -> None:
            for task in self._ready():
                for at, position in task.positions().items():
                    if self._layout is not None and self._layout.at(*at) in self._owned:
                        self._log.seek(self._layout.at(*at), position.offset)

        patch.setattr(Worker, "_start_over", start_over)

    @staticmethod
    def the_store_is_written_before_the_commit(patch: pytest.MonkeyPatch) -> None:
        real = Task.flush

        def flush(self: Task) -> None:
            real(self)
            for state in self.states.values():
                mark = state._store.mark()
                if mark is not None:
                    state._store.write(state._pending, mark)

        patch.setattr(Task, "flush", flush)


BUGS: list[Callable[[pytest.MonkeyPatch], None]] = [
    _Dropped.commit_after_revoke,
    _Dropped.an_empty_offset_list,
    _Dropped.restore_to_the_lso,
    _Dropped.tasks_live_on_after_an_abort,
    _Dropped.the_store_is_written_before_the_commit,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker is worth what it catches: among these seeds at least one history goes wrong."""
    bug(monkeypatch)
    for seed in range(200):
        try:
            if History(seed).run():
                return
        except Exception:  # an assertion inside is a find, too
            return
    pytest.fail("not found in 200 seeds")
