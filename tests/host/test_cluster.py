"""The log behind a socket, where it differs from the embedded one: other members, lost connections, other owners."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from semel.errors import UsageError
from semel.host import cluster as cluster_module
from semel.host import kafka_client
from semel.host.cluster import ClusterLog, open_cluster
from semel.host.kafka_client import Stuck, Watchdog, address
from semel.ports import Done, Fenced, LogLost, NewTopic, NotDone, Position, Records, TopicPartition
from tests.host.logs import Logs, Member, fill, parts, polled, read_all, take
from tests.support.broker import BrokerProcess
from tests.support.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy

NAMES = itertools.count()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("cluster") / "data") as running:
        yield running


@pytest.fixture
def logs(broker: BrokerProcess) -> Iterator[Logs]:
    made = Logs(lambda **s: open_cluster(f"kafka://{broker.address}", session_timeout_ms=1_500, **s))
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    return f"t{next(NAMES)}"


class Copier:
    """Copies its partitions, value by value, in transactions; commits in `revoked`, aborts in `lost`."""

    def __init__(self, log: ClusterLog, source: str, target: str) -> None:
        self.log = log
        self.positions: dict[TopicPartition, Position] = {}
        self.member = Member(log, self.revoked)
        self.write = log.writer(target)
        self.revoke_commits = 0
        log.join([source], self.member)
        log.begin()

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        if self.positions:
            self.revoke_commits += 1
            self.commit()

    def round(self) -> int:
        taken = 0
        for records in self.log.poll(0.02):
            for value in records.values:
                self.write(records.source.partition, None, value, 1, None)
            self.positions[records.source] = Position(records.next_offset)
            taken += len(records.values)
        return taken

    def commit(self) -> None:
        assert self.log.commit(self.positions) == Done()
        self.positions.clear()
        self.log.begin()


def test_partitions_move_and_every_record_is_copied_once(logs: Logs, name: str) -> None:
    """A second member joins in the middle: the first commits what it has taken while the partitions are still its
    own, and the second goes on exactly there."""
    values = {p: [b"%d-%d" % (p, n) for n in range(3_000)] for p in range(4)}
    fill(logs, name, values, 4)
    first_log, second_log = logs.open(name, "m1", f"{name}-1"), logs.open(name, "m2", f"{name}-2")
    assert isinstance(first_log, ClusterLog) and isinstance(second_log, ClusterLog)
    first_log.create([NewTopic(f"{name}-out", 4)])
    first = Copier(first_log, name, f"{name}-out")
    while not first.round():
        pass
    second = Copier(second_log, name, f"{name}-out")
    deadline = time.monotonic() + 30
    while not (len(first.member.owned) == len(second.member.owned) == 2):
        assert time.monotonic() < deadline, (first.member.events, second.member.events)
        first.round()
        second.round()
    assert first.revoke_commits == 1
    fill(logs, name, {p: [b"more-%d" % p] for p in range(4)}, 4)
    reader = logs.open(name)
    expected = {p: [*given, b"more-%d" % p] for p, given in values.items()}
    while True:
        first.round()
        second.round()
        for copier in (first, second):
            if copier.positions:
                copier.commit()
        positions = reader.committed(parts(name, 4))
        if sum(p.offset for p in positions.values() if p) >= 4 * 3_001:
            break
        assert time.monotonic() < deadline
    assert read_all(reader, f"{name}-out", 4) == expected


def test_plain_positions_can_be_written_while_partitions_go(logs: Logs, name: str) -> None:
    """A delivery tells its positions in `revoked`. Asked from another thread (a watchdog), librdkafka's commit waited
    for the callback that waited for it, the group stood still until the watchdog gave up, 30 s."""
    fill(logs, name, {0: [b"x"], 1: [b"y"]})
    first, second = logs.open(name, "m1"), logs.open(name, "m2")
    outcomes: list[object] = []
    member = Member(
        first, lambda partitions: outcomes.append(first.commit_offsets(dict.fromkeys(partitions, Position(1))))
    )
    first.join([name], member)
    take(first, 2)
    other = Member(second)
    second.join([name], other)
    began = time.monotonic()

    def shared() -> bool:
        second.poll(0.02)
        return len(other.owned) == 1

    polled(first, shared)
    assert outcomes == [Done()] and time.monotonic() - began < 10
    assert first.committed(parts(name, 2)) == dict.fromkeys(parts(name, 2), Position(1))


@pytest.mark.parametrize("held_key", [END_TXN, TXN_OFFSET_COMMIT])
def test_a_lost_connection_in_a_transaction_costs_the_producer(tmp_path: Path, held_key: int) -> None:
    """FAULTS B1 and B26: the commit succeeds over another connection, and because one was lost the next transaction is
    begun on a new Producer with a higher epoch; the delayed request then changes nothing."""
    with Proxy() as proxy, BrokerProcess(tmp_path / "data", advertise=proxy.address) as broker:
        proxy.target = ("127.0.0.1", broker.port)
        logs = Logs(lambda **s: open_cluster(f"kafka://{proxy.address}", **s))
        try:
            delayed(logs, proxy, held_key, "b1")
        finally:
            logs.close()


def delayed(logs: Logs, proxy: Proxy, held_key: int, name: str) -> None:
    fill(logs, name, {0: [b"%d" % n for n in range(200)]}, 1)
    log = logs.open(name, "m", f"tx-{name}")
    assert isinstance(log, ClusterLog)
    log.create([NewTopic(f"{name}-out", 1)])
    log.join([name], Member(log))
    write = log.writer(f"{name}-out")
    take(log, 200)
    source = TopicPartition(name, 0)
    proxy.hold_next(held_key, lambda frame: f"tx-{name}".encode() in frame)
    log.begin()
    write(0, None, b"first", 1, None)
    assert log.commit({source: Position(100)}) == Done()
    held = proxy.wait_held()
    assert log._transactions is not None and log._transactions.replaced == 1
    log.begin()
    write(0, None, b"second", 1, None)
    held.release()
    assert log.commit({source: Position(200)}) == Done()
    assert log._transactions.replaced == 1
    assert log.committed([source]) == {source: Position(200)}
    assert read_all(log, f"{name}-out", 1) == {0: [b"first", b"second"]}


def test_transactions_without_a_loss_keep_their_producer(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"x"]}, 1)
    log = logs.open(name, "m", name)
    assert isinstance(log, ClusterLog) and log._transactions is not None
    log.create([NewTopic(f"{name}-out", 1)])
    log.join([name], Member(log))
    take(log, 1)
    write = log.writer(f"{name}-out")
    for _ in range(50):
        log.begin()
        write(0, None, b"y", 1, None)
        assert log.commit({TopicPartition(name, 0): Position(1)}) == Done()
    assert log._transactions.replaced == 0


def test_a_broker_killed_under_a_transaction(tmp_path: Path) -> None:
    """Whatever the commit says, what it says is so: Done is in the log, anything else is not or is told as unknown;
    and the session goes on."""
    with BrokerProcess(tmp_path / "data") as broker:
        logs = Logs(lambda **s: open_cluster(f"kafka://{broker.address}", **s))
        fill(logs, "in", {0: [b"x"]}, 1)
        log = logs.open("g", "m", "tx")
        log.create([NewTopic("out", 1)])
        member = Member(log)
        log.join(["in"], member)
        take(log, 1)
        write = log.writer("out")
        told = []
        for n in range(4):
            log.begin()
            write(0, None, b"%d" % n, 1, None)
            if n % 2:
                broker.restart()
            told.append(log.commit({TopicPartition("in", 0): Position(1)}))
        found = read_all(logs.open(), "out", 1)[0]
        for n, outcome in enumerate(told):
            if isinstance(outcome, Done):
                assert b"%d" % n in found
            elif isinstance(outcome, NotDone | Fenced):
                assert b"%d" % n not in found
        assert told[0] == Done() and len(found) == len(set(found))
        polled(log, lambda: bool(member.owned))
        log.begin()
        write(0, None, b"last", 1, None)
        assert log.commit({TopicPartition("in", 0): Position(1)}) == Done()
        logs.close()


def test_the_second_owner_of_an_identity_ends_the_first(logs: Logs, name: str) -> None:
    """Two processes with one static member id (a copied state folder): the older one is told, and why."""
    fill(logs, name, {0: [b"x"]})
    first = logs.open(name, "same")
    first.join([name], Member(first))
    take(first, 1)
    second = logs.open(name, "same")
    second.join([name], Member(second))
    take(second, 1)
    with pytest.raises(LogLost, match="same identity"):
        polled(first, lambda: False)


def test_a_record_that_the_log_will_never_take_is_told_as_such(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"x"]})
    log = logs.open(name, "m", name)
    log.create([NewTopic(f"{name}-out", 1, {"max.message.bytes": "1000"})])
    log.join([name], Member(log))
    take(log, 1)
    write = log.writer(f"{name}-out")
    log.begin()
    write(0, None, b"x" * 5_000, 1, None)
    outcome = log.commit({TopicPartition(name, 0): Position(1)})
    assert isinstance(outcome, NotDone) and "a write was refused" in outcome.reason
    log.begin()
    write(0, None, b"small", 1, None)
    assert log.commit({TopicPartition(name, 0): Position(1)}) == Done()
    assert read_all(log, f"{name}-out", 1) == {0: [b"small"]}


def test_who_lost_its_membership_commits_nothing(logs: Logs, name: str) -> None:
    """Offsets travel with the membership of the assignment; after it is lost the commit is refused here already."""
    fill(logs, name, {0: [b"x"]})
    log = logs.open(name, "m", name)
    assert isinstance(log, ClusterLog)
    log.join([name], Member(log))
    take(log, 1)
    log.begin()
    log._membership = None
    assert isinstance(log.commit({TopicPartition(name, 0): Position(1)}), Fenced)
    assert log.committed(parts(name, 1)) == {TopicPartition(name, 0): None}


def test_a_log_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LogLost, match=r"kafka://127\.0\.0\.1:1 does not answer"):
        ClusterLog("kafka://127.0.0.1:1").connect(0.2)


def test_a_log_that_goes_away_ends_the_session_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PROBE_TIMEOUT_S", 0.5)
    with BrokerProcess(tmp_path / "data") as broker:
        logs = Logs(lambda **s: open_cluster(f"kafka://{broker.address}", **s))
        fill(logs, "in", {0: [b"x"]})
        log = logs.open("g", "m")
        log.join(["in"], Member(log))
        take(log, 1)
        monkeypatch.setattr(kafka_client, "LOST_AFTER_S", 1.0)  # not before: a busy machine is no silent log
        broker.kill()
        with pytest.raises(LogLost, match=broker.address):
            polled(log, lambda: False)
        logs.close()


@pytest.mark.parametrize(
    "url", ["kafka://", "kafka://host", "kafka://host:x", "http://h:1", "kafka://h:1/topic", "kafka://h:1?acks=0"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="kafka://"):
        address(url)


def test_settings_in_an_address() -> None:
    found = address("kafka://a:1,b:2?compression.type=lz4")
    assert (found.url, found.servers, dict(found.settings)) == (
        "kafka://a:1,b:2",
        "a:1,b:2",
        {"compression.type": "lz4"},
    )


def test_a_call_that_never_returns_is_given_up() -> None:
    """FAULTS P7: send_offsets_to_transaction may ignore its timeout; the watchdog does not."""
    never = threading.Event()
    watchdog = Watchdog(address("kafka://h:1"))
    assert watchdog.call(lambda: 7, 1.0) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.call(lambda: 1 / 0, 1.0)
    for _ in range(Watchdog.STUCK_MAX):
        with pytest.raises(Stuck):
            watchdog.call(never.wait, 0.01)
    with pytest.raises(LogLost, match="never returned"):
        watchdog.call(lambda: 7, 1.0)
    never.set()


def test_records_of_many_partitions_become_columns(logs: Logs, name: str) -> None:
    """Interleaved partitions are told apart, in order, with headers only where there are any."""
    fill(logs, name, {p: [b"%d" % n for n in range(500)] for p in range(8)}, 8)
    log = logs.open(name, "m")
    log.join([name], Member(log))
    seen: dict[TopicPartition, list[int]] = {}

    def add(records: Records) -> None:
        assert records.headers is None and len(records.keys) == len(records.offsets) == len(records.timestamps)
        seen.setdefault(records.source, []).extend(records.offsets)

    polled(log, lambda: sum(map(len, seen.values())) >= 4_000, add)
    assert seen == {at: list(range(500)) for at in parts(name, 8)}
