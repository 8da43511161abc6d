"""The worker over a log with Kafka's rules: each test is a failure of the field (FAULTS, In the processor) that must
not happen here. The totals of what was put in are compared with the committed state and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from semel.app import App
from semel.contract import Mode
from semel.errors import SemelError
from semel.ports import (
    Fenced,
    NotDone,
    Outcome,
    Position,
    Records,
    SinkConnection,
    Step,
    Steps,
    Store,
    TopicInfo,
    TopicPartition,
    Unknown,
)
from semel.sinks import SQLite
from semel.streams.builder import Builder
from semel.streams.reset import _count as count_unread
from semel.streams.reset import beginning, leftover
from semel.streams.state import MemoryStore
from semel.streams.task import ProcessingError, read_metadata
from semel.streams.topic import Topic
from semel.streams.trace import ORIGIN, parse_origin, parse_taken
from semel.streams.worker import CommitFailed, Worker
from tests.support.memlog import MemBroker, MemLog, Transaction

orders = Topic("orders", key=str, value=int)
totals = Topic("totals", key=str, value=int)


@dataclass(frozen=True, slots=True)
class Alert:
    order: int


def direct(b: Builder) -> None:
    """Totals per key, straight from the topic: one sub-topology, one state."""
    b.read(orders).fold(0, lambda total, order: total + order, name="sums").changes().write(totals)


def by_parity(b: Builder) -> None:
    """Through a repartition topic: two sub-topologies."""
    (
        b.read(orders)
        .key_by(lambda order: "odd" if order % 2 else "even", key=str)
        .fold(0, lambda total, order: total + order, name="sums")
        .changes()
        .write(totals)
    )


class Machine:
    """One member's machine: its disk outlives its workers."""

    def __init__(
        self,
        name: str,
        broker: MemBroker,
        build: Callable[[Builder], object] = direct,
        *,
        log: type[MemLog] = MemLog,
        start: bool = True,
        **settings: object,
    ) -> None:
        self.name, self.broker, self.make_log = name, broker, log
        self.disk: dict[tuple[str, int], MemoryStore] = {}
        self.graph = App("billing", build).graph()
        self.settings = settings
        self.notices: list[str] = []
        self.now_ms = 1_000_000
        self.starts = 0
        if start:
            self.start()

    def store(self, state: str, partition: int) -> Store:
        return self.disk.setdefault((state, partition), MemoryStore())

    def start(self) -> None:
        self.log = self.make_log(self.broker, self.name)
        self.starts += 1
        id = f"{self.name}{self.starts}"
        self.worker = Worker(self.graph, self.log, self.store, notice=self.notices.append, id=id, **self.settings)  # type: ignore
        self.worker.start(self.now_ms)

    def run(self, rounds: int = 10, *, commit: bool = True) -> None:
        """Rounds of 10 ms; with `commit` the interval ends after them."""
        for _ in range(rounds):
            self.now_ms += 10 if not commit else 60
            self.worker.run_once(self.now_ms, 0.0)

    def take(self) -> None:
        """Takes what is there without committing it."""
        self.worker.run_once(self.now_ms, 0.0)


def open_transaction(broker: MemBroker) -> int:
    number = len(broker.transactions) + 1
    broker.transactions[number] = Transaction(number, "somebody")
    return number


def fill(broker: MemBroker, count: int = 60, keys: int = 5, start: int = 0) -> Counter[str]:
    expected: Counter[str] = Counter()
    for i in range(start, start + count):
        key = f"k{i % keys}"
        broker.put("orders", key.encode(), b"%d" % i, ms=i)
        expected[key] += i
    return expected


def final(broker: MemBroker, topic: str = "totals") -> dict[str, int]:
    return {key.decode(): int(value) for key, value in broker.committed(topic) if key is not None and value is not None}


def changelog(broker: MemBroker) -> dict[str, int]:
    return final(broker, "billing-sums-changelog")


@pytest.fixture
def broker() -> MemBroker:
    made = MemBroker()
    made.create("orders", 4)
    return made


def halves(broker: MemBroker, topics: Sequence[str] = ("orders",)) -> tuple[list[TopicPartition], list[TopicPartition]]:
    everything = broker.all_partitions(topics)
    return [at for at in everything if at.partition < 2], [at for at in everything if at.partition >= 2]


@pytest.mark.parametrize("build", [direct, by_parity])
def test_a_run_without_faults_gives_the_fold_of_its_input(
    broker: MemBroker, build: Callable[[Builder], object]
) -> None:
    """Final outputs and changelog equal the fold of what was put in."""
    machine = Machine("a", broker, build)
    fill(broker)
    machine.run(20)
    if build is direct:
        expected = {f"k{k}": sum(range(k, 60, 5)) for k in range(5)}
    else:
        expected = {"odd": sum(range(1, 60, 2)), "even": sum(range(0, 60, 2))}
    assert final(broker) == expected == changelog(broker)
    assert len(broker.committed("totals")) == 60


def test_every_commit_carries_outputs_changelog_and_offsets_together(broker: MemBroker) -> None:
    """P3: at every moment the committed offsets are those of the committed outputs."""
    machine = Machine("a", broker)
    for i in range(30):
        fill(broker, 3, start=3 * i)
        machine.run(1, commit=i % 3 == 0)
        done = sum(p.offset for at, p in broker.offsets.items() if at.topic == "orders")
        assert len(broker.committed("totals")) == done


def test_a_killed_worker_leaves_nothing_and_its_restart_goes_on(broker: MemBroker) -> None:
    """P2, P3: killed with outputs written and not committed; the same machine starts again."""
    machine = Machine("a", broker)
    expected = fill(broker)
    machine.run()
    for killed in range(5):
        expected += fill(broker, 20, start=100 * (killed + 1))
        machine.take()
        assert machine.worker.progress.records
        machine.start()  # the old object is gone, its transaction open: the new session aborts it
        machine.run()
        assert final(broker) == dict(expected) == changelog(broker)


def test_uncommitted_state_is_never_in_the_store(broker: MemBroker) -> None:
    """P2: the store changes only after the commit; then it holds what is committed and its mark says up to where."""
    machine = Machine("a", broker)
    expected = fill(broker)
    machine.run()
    before = {at: dict(store.items()) for at, store in machine.disk.items()}
    fill(broker, 20, start=100)
    machine.take()
    assert {at: dict(store.items()) for at, store in machine.disk.items()} == before
    assert {k.decode(): int(v) for held in before.values() for k, v in held.items()} == dict(expected)


class LsoLog(MemLog):
    """The bug of P1: a read_committed consumer's watermarks, the last stable offset, taken for the end."""

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.broker.stable_end(at) for at in partitions}


def p1(broker: MemBroker, log: type[MemLog]) -> Counter[str]:
    """An owner is killed in an open transaction, its partitions are handed over twice within the transaction timeout:
    the committed tail of the changelog lies behind the open transaction."""
    machines = {name: Machine(name, broker, log=log, start=False) for name in "abc"}
    everything = broker.all_partitions(["orders"])
    broker.assign({"a": everything})
    broker.when_waiting = lambda: None
    for machine in machines.values():
        machine.start()
    expected = fill(broker)
    machines["a"].run()
    fill(broker, 5, start=60)  # all keys, so that each partition in use has a changelog record in the open transaction
    machines["a"].take()
    for task in machines["a"].worker._tasks.values():
        task.flush()  # killed after its changelogs were handed over: their transaction stays open
    broker.assign({"b": everything})
    machines["b"].run(2)
    if log is LsoLog:
        assert machines["b"].worker.running  # and so it goes on with half of the state
    broker.assign({"c": everything})
    machines["c"].run(2)
    broker.expire("a")
    expected += Counter({f"k{i % 5}": i for i in range(60, 65)})
    machines["c"].run(10)
    expected += fill(broker, 10, start=65)
    machines["c"].run(10)
    return expected


def test_restore_waits_for_the_open_transaction_of_a_dead_owner(broker: MemBroker) -> None:
    """P1: the restored state equals the fold of the committed input, though a dead owner's transaction was open."""
    assert p1(broker, MemLog) == final(broker) == changelog(broker)


def test_the_restore_says_for_whom_it_waits(broker: MemBroker) -> None:
    """P1: an end below the target is an open transaction: the worker says so and keeps polling."""
    a = Machine("a", broker)
    fill(broker)
    a.run()
    fill(broker, 5, start=60)
    a.take()
    for task in a.worker._tasks.values():
        task.flush()
    broker.when_waiting = lambda: None
    broker.assign({"b": broker.all_partitions(["orders"])})
    b = Machine("b", broker)
    b.run(8)
    assert not b.worker.running
    assert any("a transaction of a former owner is open" in notice for notice in b.notices)


def test_the_last_stable_offset_as_target_gives_newer_offsets_with_older_state(broker: MemBroker) -> None:
    """The planted bug of P1: the same history with the LSO taken for the end is wrong: the test above sees it."""
    assert p1(broker, LsoLog) != final(broker)


def test_the_target_is_read_after_the_offsets(broker: MemBroker) -> None:
    """P1: offsets first, then the end; the other way round a commit in between gives newer offsets and older state."""
    machine = Machine("a", broker)
    machine.run(1)
    calls = [call for call in machine.log.calls if call in ("committed", "ends")]
    assert calls.index("committed") < calls.index("ends")
    first_assignment = machine.log.calls.index("assigned")
    after = [c for c in machine.log.calls[first_assignment:] if c in ("committed", "ends")]
    assert after[0] == "committed"


def test_a_zombie_with_old_generation_commits_nothing(broker: MemBroker) -> None:
    """P11, B14: a paused owner's transaction is refused, and it goes on only with what it is assigned then."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run()
    expected += fill(broker, 20, start=60)
    a.take()  # and is stopped here, its transaction open
    broker.assign({"b": broker.all_partitions(["orders"])})
    b = Machine("b", broker)
    b.run()
    a.now_ms += 1_000
    a.worker._commit()  # resumes in the middle of its round
    assert a.worker.progress.aborts == 1
    a.run(5)
    b.run(5)
    assert final(broker) == dict(expected) == changelog(broker)
    assert Counter(broker.committed("totals")) == Counter(dict.fromkeys(broker.committed("totals"), 1))


def test_each_transaction_that_wrote_carries_the_offsets_of_every_task_that_wrote(broker: MemBroker) -> None:
    """P11: MemLog refuses a transaction with writes and no offsets; here each task that wrote is looked at."""
    seen: list[Mapping[TopicPartition, Position]] = []

    class Watched(MemLog):
        def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
            assert self._transaction is not None
            wrote = {at.partition for at in self._transaction.partitions if at.topic.endswith("-changelog")}
            assert wrote <= {at.partition for at in positions if at.topic == "orders"}
            seen.append(positions)
            return super().commit(positions)

    log = Watched(broker, "a")
    worker = Worker(App("billing", direct).graph(), log, lambda name, p: MemoryStore())
    worker.start(0)
    fill(broker)
    for now in range(0, 1_000, 60):
        worker.run_once(now, 0.0)
    assert len(seen) >= 1
    assert all(positions for positions in seen)


def test_positions_of_quiet_partitions_are_written_down_by_the_first_commit(broker: MemBroker) -> None:
    """A partition that never had a record has a committed position too: a missing one is a loss from then on."""
    machine = Machine("a", broker)
    broker.put("orders", b"k0", b"1")
    machine.run()
    assert set(broker.offsets) == set(broker.all_partitions(["orders", "billing-sums-changelog"]))


def test_revoke_commits_and_the_next_owner_goes_on(broker: MemBroker) -> None:
    """A rebalance in the middle of a transaction: what was processed is committed before the partitions go."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run(2)
    b = Machine("b", broker)
    left, right = halves(broker)
    for round in range(6):
        expected += fill(broker, 20, start=100 * (round + 1))
        a.take()
        broker.assign({"a": left, "b": right} if round % 2 == 0 else {"b": left, "a": right})
        broker.assignment = {}  # nobody has the partitions before their owner gave them up
        assert not a.worker.progress.aborts
        a.worker.run_once(a.now_ms, 0.0)
        b.worker.run_once(b.now_ms, 0.0)
        broker.assign({"a": left, "b": right} if round % 2 == 0 else {"b": left, "a": right})
        a.run(6)
        b.run(6)
    assert final(broker) == dict(expected) == changelog(broker)
    assert "revoked" in a.log.calls and a.worker.progress.aborts == 0
    assert len(broker.committed("totals")) == 60 + 6 * 20


def test_lost_partitions_are_aborted_not_committed(broker: MemBroker) -> None:
    """P6, B14: a member that was away too long learns it from `lost` and writes nothing."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run()
    expected += fill(broker, 20, start=60)
    a.take()
    broker.assign({"b": broker.all_partitions(["orders"])})
    a.run(3)
    assert "lost" in a.log.calls and not a.worker.running
    b = Machine("b", broker)
    b.run()
    assert final(broker) == dict(expected) == changelog(broker)


@pytest.mark.parametrize("outcome", [Unknown("no answer"), NotDone("refused"), Fenced("moved")])
def test_after_a_commit_that_is_not_done_all_starts_over_from_what_is_committed(
    broker: MemBroker, outcome: Outcome
) -> None:
    """Law 9: unknown is neither: the stable committed positions say what it was."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run()
    expected += fill(broker, 20, start=60)
    a.log.next_outcome = outcome
    a.run(20)
    assert a.worker.progress.aborts == 1
    assert final(broker) == dict(expected) == changelog(broker)
    assert len(broker.committed("totals")) == 80
    assert any("going back to the committed positions" in notice for notice in a.notices)


def test_commits_that_never_succeed_end_the_worker(broker: MemBroker) -> None:
    """A bound on every retry: the reason reaches a person."""

    class Refusing(MemLog):
        def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
            self.next_outcome = NotDone("record too large")
            return super().commit(positions)

    worker = Worker(App("billing", direct).graph(), Refusing(broker, "a"), lambda name, p: MemoryStore())
    worker.start(0)
    fill(broker)
    with pytest.raises(CommitFailed, match="record too large"):
        for now in range(0, 200_000, 60):
            worker.run_once(now, 0.0)
    assert now > 60_000 and worker.progress.aborts < 200  # not after a second, and not in a busy loop


def test_a_replaced_member_waits_for_its_group_and_does_not_give_up(broker: MemBroker) -> None:
    """Fenced commits come faster than heartbeats: the bound on them is also one in time."""

    class Rebalancing(MemLog):
        def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
            if a.now_ms < until_ms:
                self.next_outcome = Fenced("the group has moved on")
            return super().commit(positions)

    a = Machine("a", broker, log=Rebalancing)
    until_ms = a.now_ms + 20_000
    expected = fill(broker)
    a.run(500)
    assert 10 <= a.worker.progress.aborts <= 40
    assert final(broker) == dict(expected)


def test_partition_time_travels_with_the_offsets(broker: MemBroker) -> None:
    """P13: the largest record time of a partition is known again after a restart."""
    machine = Machine("a", broker)
    broker.put("orders", b"k0", b"1", partition=0, ms=5_000)
    broker.put("orders", b"k0", b"1", partition=0, ms=3_000)
    machine.run()
    at = TopicPartition("orders", 0)
    assert read_metadata(broker.offsets[at].metadata).time == 5_000
    machine.start()
    machine.run(2)
    assert machine.worker._tasks[at].stream_time == 5_000
    broker.put("orders", b"k0", b"1", partition=0, ms=100)
    machine.run()
    assert read_metadata(broker.offsets[at].metadata).time == 5_000


def test_a_failing_function_commits_nothing_of_its_transaction(broker: MemBroker) -> None:
    """The error names node, line and record; what was processed before it in the transaction is not committed."""

    def fails(b: Builder) -> None:
        b.read(orders).map_values(lambda order: 100 // (order - 7)).write(totals)

    machine = Machine("a", broker, fails)
    for i in range(10):
        broker.put("orders", b"k", b"%d" % i, partition=1)
    with pytest.raises(
        ProcessingError, match=r"map_values lambda \(test_worker.py:\d+\) failed at orders partition 1 offset 7"
    ):
        machine.run()
    assert broker.committed("totals") == []
    assert not broker.offsets
    assert all(t.decided is False for t in broker.transactions.values() if t.partitions)


def test_missing_positions_with_state_stop_the_start(broker: MemBroker) -> None:
    """A group's offsets expire after 7 days without members: never a silent reset."""
    machine = Machine("a", broker)
    fill(broker)
    machine.run()
    broker.offsets.clear()
    machine.start()
    with pytest.raises(SemelError, match=r"`semel app reset \S+test_worker.py --on mem:`"):
        machine.run()


def test_a_source_made_anew_stops_the_start_even_where_the_position_fits(broker: MemBroker) -> None:
    """A deleted topic comes back, fuller than the old one was: what lies below the old position would be skipped. A
    position that a person has set since is theirs."""
    machine = Machine("a", broker)
    fill(broker)
    machine.run()
    for p in range(4):
        broker.logs[TopicPartition("orders", p)].clear()
    del broker.topics["orders"]
    broker.create("orders", 4)
    fill(broker, 100)
    machine.start()
    with pytest.raises(SemelError, match="it was deleted and made anew since"):
        machine.run()
    for at in broker.all_partitions(["orders"]):
        broker.offsets[at] = Position(0)
    machine.start()
    machine.run()
    assert sum(final(broker).values()) == sum(range(60)) + sum(range(100))


def test_missing_positions_with_records_in_a_repartition_topic_stop_the_start(broker: MemBroker) -> None:
    """The same where the only trace is in a topic between sub-topologies."""

    def through(b: Builder) -> None:
        b.read(orders).key_by(lambda o: o % 3, name="third", key=int).count(name="n").changes().write(
            Topic("out", key=int, value=int)
        )

    machine = Machine("a", broker, through)
    fill(broker)
    machine.run()
    for p in range(4):
        broker.logs[TopicPartition("billing-n-changelog", p)].clear()
    broker.offsets.clear()
    machine.start()
    with pytest.raises(SemelError, match="holds records of earlier runs"):
        machine.run()


def renamed(b: Builder) -> None:
    b.read(orders).fold(0, lambda total, order: total + order, name="all").changes().write(totals)


def renamed_by_parity(b: Builder) -> None:
    key = b.read(orders).key_by(lambda order: "odd" if order % 2 else "even", key=str)
    key.fold(0, lambda total, order: total + order, name="all").changes().write(totals)


@pytest.mark.parametrize("build", [direct, by_parity])
def test_a_changelog_that_is_gone_stops_every_start(broker: MemBroker, build: Callable[[Builder], object]) -> None:
    """Going on from an empty state behind its positions would be short of all that was read, silently. The topic is not
    made first, or the second start would find it."""
    machine = Machine("a", broker, build)
    fill(broker)
    machine.run(20)
    machine.worker.close(machine.now_ms)
    broker.topics.pop("billing-sums-changelog")
    for _ in range(2):
        with pytest.raises(SemelError, match=r"state 'sums'.* up to offset \d+ .*`semel app begin \S+ sums --on mem:`"):
            machine.start()
    assert "billing-sums-changelog" not in broker.topics


@pytest.mark.parametrize(("build", "changed"), [(direct, renamed), (by_parity, renamed_by_parity)])
def test_a_state_under_another_name_stops_the_start_until_it_is_begun(
    broker: MemBroker, build: Callable[[Builder], object], changed: Callable[[Builder], object]
) -> None:
    """Begun on purpose it holds what comes from then on; what the former name left must be given up too, or it would
    come back one day as it was."""
    machine = Machine("a", broker, build)
    fill(broker)
    machine.run(20)
    machine.worker.close(machine.now_ms)
    with pytest.raises(SemelError, match=r"state 'all'.*no topic billing-all-changelog.*app begin \S+ all --on mem:`"):
        Machine("a", broker, changed)
    made, positions = beginning(App("billing", changed).graph(), machine.log, "all", prefix="")
    assert (made.name, made.partitions, made.config) == ("billing-all-changelog", 4, {"cleanup.policy": "compact"})
    assert {at.topic for at in positions} == {"orders"} and "billing-all-changelog" not in broker.topics
    machine.log.create([made])
    with pytest.raises(SemelError, match=r"the state 'sums'.*`semel app discard \S+ billing-sums-changelog --on mem:`"):
        Machine("a", broker, changed)
    found = leftover(App("billing", changed).graph(), machine.log, "billing-sums-changelog", prefix="", delivered=dict)  # type: ignore[arg-type]
    assert found.kind == "changelog"
    broker.topics.pop("billing-sums-changelog")
    broker.assign({})
    machine = Machine("a", broker, changed)
    broker.put("orders", b"k0", b"7")
    machine.run(20)
    assert 7 in final(broker, "billing-all-changelog").values()
    with pytest.raises(SemelError, match="nothing to begin"):
        beginning(machine.graph, machine.log, "all", prefix="")
    with pytest.raises(SemelError, match=r"no state 'sums'. It has all"):
        beginning(machine.graph, machine.log, "sums", prefix="")


def test_a_member_that_was_faster_makes_the_changelog(broker: MemBroker) -> None:
    """Between our look at the topics and our look at the positions another member has begun: no reason to stop."""

    class Slow(MemLog):
        def topics(self) -> Mapping[str, TopicInfo]:
            seen = super().topics()
            if "billing-sums-changelog" not in seen:
                other = Machine("b", self.broker)
                fill(self.broker)
                other.run()
            return seen

    Machine("a", broker, log=Slow)


@pytest.mark.parametrize(
    ("topic", "group"),
    [
        ("billing-eu-sums-changelog", "billing-eu"),
        ("billing-eu-sums-repartition", "billing-eu"),
        ("billing-eu-rows-outbox", "billing-eu.rows"),
    ],
)
def test_a_topic_that_another_app_has_under_the_same_name_stops_the_start(
    broker: MemBroker, topic: str, group: str
) -> None:
    """State `eu-sums` of app `billing`, state `sums` of app `billing-eu`: each would restore what the other wrote."""

    def build(b: Builder) -> None:
        key = b.read(orders).key_by(lambda order: "odd" if order % 2 else "even", key=str)
        sums = key.fold(0, lambda total, order: total + order, name="eu-sums").changes()
        sums.map_values(Alert).write(SQLite("none.db", "eu-rows", name="eu-rows", key="order"))

    there: dict[tuple[str, str], Position] = {}

    def asked(group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        return {at: there.get((group, at.topic)) for at in partitions}

    machine = Machine("a", broker, build, asked=asked)
    fill(broker)
    there[group, topic] = Position(0)
    with pytest.raises(SemelError, match=rf"group {group} uses the topic {topic}, which app billing has"):
        Machine("b", broker, build, asked=asked)
    there.clear()
    machine.run()
    there["billing.eu-rows", "billing-eu-rows-outbox"] = Position(0)
    there[group, topic] = Position(0)
    Machine("b", broker, build, asked=asked)  # what is ours for a while is not asked about


def test_a_log_that_is_slow_to_answer_is_no_empty_one(broker: MemBroker) -> None:
    """A busy cluster's first fetch brought nothing within a tenth of a second: the topic was taken for empty, and
    the app went on."""

    class Busy(MemLog):
        def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
            for _ in range(100):
                yield Records(at, [], [], [], [], None, start, -1)
            yield from super().read(at, start, target)

    machine = Machine("a", broker)
    fill(broker)
    machine.run()
    broker.offsets.clear()
    with pytest.raises(SemelError, match="has no committed position"):
        Machine("a", broker, log=Busy).run()
    # The same said of an outbox "all of it was delivered", when an app was reset.
    busy = Busy(broker, "b")
    at = broker.all_partitions(["orders"])
    assert count_unread(busy, {at[0]: Position(1)}, at) == 59
    other = broker.put("orders", b"k", b"1", partition=0, transaction=open_transaction(broker))
    assert count_unread(busy, {at[0]: Position(other)}, at[:1]) == 0, "behind an open transaction: of now"


def test_the_changelog_of_an_app_with_a_similar_name_is_left_alone(broker: MemBroker) -> None:
    """`billing-eu-sums-changelog` may be a state of app `billing-eu`."""
    broker.create("billing-eu-sums-changelog", 1)
    broker.put("billing-eu-sums-changelog", b"k", b"1")
    machine = Machine("a", broker)
    with pytest.raises(SemelError, match="nothing says that topic"):
        leftover(machine.graph, machine.log, "billing-eu-sums-changelog", prefix="", delivered=dict)  # type: ignore[arg-type]


def test_a_first_transaction_that_was_aborted_is_no_reason_to_stop(broker: MemBroker) -> None:
    """Killed before its first commit, an app has internal topics with aborted records and no positions: it starts."""
    machine = Machine("a", broker)
    expected = fill(broker)
    machine.run(1, commit=False)
    machine.take()
    assert machine.worker.progress.records and not broker.offsets
    machine.start()
    machine.run()
    assert final(broker) == dict(expected)


def test_a_store_that_is_ahead_of_its_changelog_is_rebuilt_and_says_why(broker: MemBroker) -> None:
    """The log went back (a restored backup): the changelog is the truth."""
    machine = Machine("a", broker)
    expected = fill(broker)
    machine.run()
    for store in (store for store in machine.disk.values() if store.mark() is not None):
        store.write(
            {b"k0": b"-5"},
            b'{"topic_id":"%s","history":"a1.1","offset":10000,"top":10000,"time_ms":1000000}'
            % broker.topics["billing-sums-changelog"].topic_id.encode(),
        )
    machine.start()
    expected += fill(broker, 10, start=60)
    machine.run()
    assert final(broker) == dict(expected)
    assert any("the log went back" in notice for notice in machine.notices)


def test_a_store_that_was_away_too_long_is_rebuilt(broker: MemBroker) -> None:
    """P10: half of delete.retention.ms later a tombstone may be compacted away: the deleted key must not return."""
    machine = Machine("a", broker)
    fill(broker)
    machine.run()
    partition = next(p for (_, p), store in machine.disk.items() if dict(store.items()))
    log = broker.logs[TopicPartition("billing-sums-changelog", partition)]
    deleted = next(entry.key for entry in log if entry.key)
    log[:] = [entry if entry.key != deleted else type(entry)(None, None, 0, None, 0, marker=True) for entry in log]
    machine.now_ms += 86_400_000 // 2 + 1
    machine.start()
    machine.run(3)
    assert deleted not in dict(machine.disk["sums", partition].items())
    assert any("delete.retention.ms" in notice for notice in machine.notices)


def test_only_the_difference_is_restored_after_a_crash(broker: MemBroker) -> None:
    """A store with a mark that fits is used: the changelog is read from there."""
    machine = Machine("a", broker)
    fill(broker, 200, keys=50)
    machine.run(20)
    machine.start()
    machine.run(5)
    assert machine.worker.progress.restored == 0
    machine.disk.clear()
    machine.start()
    machine.run(5)
    assert machine.worker.progress.restored == 50


@pytest.mark.parametrize("mode", [Mode.AT_LEAST_ONCE, Mode.AT_MOST_ONCE])
def test_the_other_modes_are_right_without_faults(broker: MemBroker, mode: Mode) -> None:
    """Without a crash the three modes give the same."""
    machine = Machine("a", broker, mode=mode)
    expected = fill(broker)
    machine.run(20)
    assert final(broker) == dict(expected) == changelog(broker)


class Killed(BaseException):
    """A kill -9 at a step."""


class KillAt:
    def __init__(self, step: Step, nth: int) -> None:
        self.step, self.left = step, nth

    def reached(self, step: Step) -> None:
        if step is self.step:
            self.left -= 1
            if self.left == 0:
                raise Killed


@pytest.mark.parametrize(
    ("mode", "step", "repeats", "loses"),
    [
        (Mode.AT_LEAST_ONCE, Step.OUTPUT_AFTER, True, False),
        (Mode.AT_LEAST_ONCE, Step.OFFSETS_BEFORE, True, False),
        (Mode.AT_MOST_ONCE, Step.OFFSETS_AFTER, False, True),
        (Mode.AT_MOST_ONCE, Step.OUTPUT_BEFORE, False, True),
        (Mode.EXACTLY_ONCE, Step.OUTPUT_BEFORE, False, False),
        (Mode.EXACTLY_ONCE, Step.OUTPUT_AFTER, False, False),
        (Mode.EXACTLY_ONCE, Step.OFFSETS_BEFORE, False, False),
        (Mode.EXACTLY_ONCE, Step.OFFSETS_AFTER, False, False),
        (Mode.EXACTLY_ONCE, Step.COMMIT_BEFORE, False, False),
        (Mode.EXACTLY_ONCE, Step.COMMIT_AFTER, False, False),
    ],
)
def test_what_a_kill_does_in_each_mode(broker: MemBroker, mode: Mode, step: Step, repeats: bool, loses: bool) -> None:
    """At least once repeats, at most once loses, exactly once does neither, whichever step the kill hits."""

    def copy(b: Builder) -> None:
        b.read(orders).map_values(lambda order: order).write(totals)

    graph = App("billing", copy).graph()
    steps = KillAt(step, 2)
    for attempt in range(3):
        log = MemLog(broker, "a", steps)
        worker = Worker(graph, log, lambda name, p: MemoryStore(), mode=mode, steps=steps)
        if attempt == 0:
            fill(broker, 40, keys=40)
        try:
            worker.start(0)
            for now in range(0, 2_000, 60):
                worker.run_once(now, 0.0)
                if attempt == 0 and now == 240:
                    fill(broker, 40, keys=40, start=40)
        except Killed:
            assert attempt == 0
    got = Counter(int(value or 0) for _, value in broker.committed("totals"))
    assert any(n > 1 for n in got.values()) == repeats
    assert (set(got) != set(range(80))) == loses


def test_a_traced_run_says_where_each_output_came_from_and_in_which_order(broker: MemBroker) -> None:
    """DESIGN §7: origins are unique and name committed inputs; the order topic covers all of them."""
    machine = Machine("a", broker, by_parity, trace=True)
    fill(broker)
    machine.run(20)
    out = [e for p in range(4) for _, e in broker.visible(TopicPartition("totals", p))]
    origins = [parse_origin(dict(e.headers or ())[ORIGIN] or b"") for e in out]
    assert len(set(origins)) == len(origins) == 60
    assert {(o.topic, o.node) for o in origins} == {("billing-sums-repartition", f"{origins[0].node}")}
    between = [e for p in range(4) for _, e in broker.visible(TopicPartition("billing-sums-repartition", p))]
    assert {parse_origin(dict(e.headers or ())[ORIGIN] or b"")[1:4] for e in between} == {
        ("orders", p, offset) for p in range(4) for offset, _ in broker.visible(TopicPartition("orders", p))
    }
    taken = [parse_taken(k or b"", v or b"") for k, v in broker.committed("billing-order")]
    assert sum(t.records for t in taken if t.topic == "orders") == 60
    untraced = MemBroker()
    untraced.create("orders", 4)
    other = Machine("a", untraced, by_parity)
    fill(untraced)
    other.run(20)
    assert untraced.committed("totals") == broker.committed("totals")
    assert all(e.headers is None for p in range(4) for _, e in untraced.visible(TopicPartition("totals", p)))


def test_a_sink_never_sees_an_open_or_aborted_transaction(broker: MemBroker) -> None:
    """P5: what leaves the log is read committed from the outbox; within a transaction the sink is not even opened."""

    class Untouched(SQLite):
        def open(self, steps: Steps) -> SinkConnection:  # type: ignore
            raise AssertionError("opened within the stream")

    def alert(b: Builder) -> None:
        b.read(orders).map_values(lambda order: Alert(order)).write(Untouched("alerts.db", "alerts"))

    machine = Machine("a", broker, alert)
    fill(broker)
    machine.run()
    for killed in range(4):
        fill(broker, 10, start=100 * (killed + 1))
        machine.take()
        machine.start()
    machine.log.next_outcome = NotDone("refused")
    machine.run(20)
    rows = broker.committed("billing-alerts-outbox")
    assert Counter(rows).most_common(1)[0][1] == 1
    assert len(rows) == 100
    raw = sum(not e.marker for at, log in broker.logs.items() if at.topic == "billing-alerts-outbox" for e in log)
    assert raw > 100  # there were aborted ones


def test_a_prefix_gives_a_run_its_own_topics(broker: MemBroker) -> None:
    """verify's runs: every topic has the prefix; the named ones are not touched."""
    broker.create("v1-orders", 2)
    machine = Machine("a", broker, prefix="v1-")
    broker.put("v1-orders", b"k", b"3")
    machine.run()
    assert broker.committed("v1-totals") == [(b"k", b"3")]
    assert "totals" not in broker.topics and "billing-sums-changelog" not in broker.topics
    assert broker.topics["v1-billing-sums-changelog"].partitions == 2


def test_internal_topics_are_sized_and_configured(broker: MemBroker) -> None:
    """Changelogs are compacted, repartition topics have no retention limit, all as many partitions as their source."""
    Machine("a", broker, by_parity)
    assert broker.topics["billing-sums-changelog"].config == {"cleanup.policy": "compact"}
    assert broker.topics["billing-sums-repartition"].config["retention.ms"] == "-1"
    assert {broker.topics[t].partitions for t in ("billing-sums-changelog", "billing-sums-repartition", "totals")} == {
        4
    }


def test_what_a_removed_operator_or_sink_left_unread_stops_the_start(broker: MemBroker) -> None:
    """At start every internal topic of the app is accounted for; another app of a similar name is left alone."""
    repartition, outbox = "billing-old-repartition", "billing-old-outbox"
    broker.create(repartition, 1)
    broker.create(outbox, 1)
    broker.create("billing-other-x-repartition", 1)
    for topic in (repartition, outbox, "billing-other-x-repartition"):
        broker.put(topic, b"k", b"1")
        broker.put(topic, b"k", b"2")
    Machine("a", broker)
    broker.offsets[TopicPartition(repartition, 0)] = Position(1)
    with pytest.raises(SemelError, match=r"not read.*`semel app discard \S+ billing-old-repartition --on mem:`"):
        Machine("a", broker)
    broker.offsets[TopicPartition(repartition, 0)] = Position(2)
    positions = {TopicPartition(outbox, 0): Position(1)}
    with pytest.raises(SemelError, match=r"billing-old-outbox .* not delivered"):
        Machine("a", broker, delivered=lambda sink, ps: positions if sink == "old" else {})
    positions = {TopicPartition(outbox, 0): Position(2)}
    Machine("a", broker, delivered=lambda sink, ps: positions if sink == "old" else {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.topics.pop("orders"), "topic orders is not there at mem:, and the app reads it"),
        (lambda b: b.create("billing-sums-changelog", 3, {"cleanup.policy": "compact"}), "was kept in 3 partitions"),
        (
            lambda b: b.create("billing-sums-changelog", 4, {"cleanup.policy": "delete"}),
            "cleanup.policy=delete; it must be compact",
        ),
    ],
)
def test_topics_that_do_not_fit_stop_the_start(
    broker: MemBroker, change: Callable[[MemBroker], object], message: str
) -> None:
    """What, where, what next; nothing is repaired silently."""
    change(broker)
    with pytest.raises(SemelError, match=message):
        Machine("a", broker)


@pytest.mark.parametrize("topic", ["orders", "billing-sums-changelog"])
def test_a_topic_made_anew_under_a_running_app_stops_it(broker: MemBroker, topic: str) -> None:
    """S16, while it runs: the consumer goes on at its old position in the new topic and skips what lies before, without
    a word from the client library. Within a second the app stops and says so."""
    machine = Machine("a", broker)
    fill(broker)
    machine.run()
    made_anew(broker, topic)
    fill(broker, 100)
    with pytest.raises(SemelError, match=f"topic {topic} was deleted and made anew while app billing runs"):
        machine.run(30)


def test_a_topic_that_is_gone_stops_the_app_but_not_at_once(broker: MemBroker) -> None:
    """A broker that has just started may not know all of its topics; a log that does not answer says nothing."""

    class Forgetful(MemLog):
        answers: ClassVar[list[object]] = []

        def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
            return self.answers.pop(0) if self.answers else super().topic_ids(names)  # type: ignore[return-value]

    machine = Machine("a", broker, log=Forgetful)
    expected = fill(broker)
    Forgetful.answers = [{}, {}, None, None, {}, {}, {}]
    machine.run(100)
    expected += fill(broker, 20, start=60)
    machine.run(30)
    assert final(broker) == dict(expected) and not Forgetful.answers
    Forgetful.answers = [{}] * 10
    with pytest.raises(SemelError, match="topic orders is not there any more: it was deleted while app billing runs"):
        machine.run(100)


def test_a_worker_that_comes_back_after_a_reset_takes_the_topics_as_they_are(broker: MemBroker) -> None:
    """The story: a paused worker came back after `semel app reset`, worked on, and committed under the former id of the
    repartition topic; the next start refused it."""
    machine = Machine("a", broker, by_parity)
    fill(broker)
    machine.run()
    machine.worker._look_at_ms = machine.now_ms + 10_000  # between two looks
    made_anew(broker, "billing-key-repartition" if "billing-key-repartition" in broker.topics else repartition(broker))
    broker.assign({})
    machine.run(2)
    broker.assign({"a": broker.all_partitions(["orders", repartition(broker)])})
    for at in broker.all_partitions([repartition(broker)]):
        broker.offsets[at] = Position(0)
    fill(broker, 20, start=60)
    machine.run(4)
    topic_id = broker.topics[repartition(broker)].topic_id
    told = {read_metadata(broker.offsets[at].metadata).topic for at in broker.all_partitions([repartition(broker)])}
    assert topic_id in told and told <= {"", topic_id}


def repartition(broker: MemBroker) -> str:
    return next(name for name in broker.topics if name.endswith("-repartition"))


def made_anew(broker: MemBroker, topic: str) -> None:
    old = broker.topics.pop(topic)
    for p in range(old.partitions):
        broker.logs[TopicPartition(topic, p)].clear()
    broker.create(topic, old.partitions, old.config)
