"""Both logs behind one way to open them, so that one set of tests holds for both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from semel.ports import Log, NewTopic, Position, Records, TopicPartition
from tests.support.broker import BrokerProcess

WAIT_S = 30.0


class Logs:
    """A log to open sessions on. `open(group, member, transactional)`; every session is closed with it."""

    def __init__(self, opener: Callable[..., Log], close: Callable[[], None] = lambda: None) -> None:
        self._opener, self._close = opener, close
        self._open: list[Log] = []

    def open(self, group: str | None = None, member: str | None = None, transactional: str | None = None) -> Log:
        log = self._opener(group=group, member=member, transactional_id=transactional)
        self._open.append(log)
        return log

    def close(self) -> None:
        for log in self._open:
            log.close()
        self._close()


def cluster_logs(folder: Path) -> Logs:
    """On `semel broker`, or on the cluster that SEMEL_TEST_KAFKA=HOST:PORT names."""
    from semel.host.cluster import open_cluster

    # Brokers of Apache Kafka take no session below 6 s.
    if address := os.environ.get("SEMEL_TEST_KAFKA"):
        return Logs(lambda **s: open_cluster(f"kafka://{address}", session_timeout_ms=6_000, **s))
    return broker_logs(folder)[0]


def broker_logs(folder: Path) -> tuple[Logs, BrokerProcess]:
    """On `semel broker`, which the test may kill."""
    from semel.host.cluster import open_cluster

    broker = BrokerProcess(folder / "data")
    return Logs(
        lambda **s: open_cluster(f"kafka://{broker.address}", session_timeout_ms=2_000, **s),
        broker.close,
    ), broker


def embedded_logs(folder: Path) -> Logs:
    from semel.host.embedded import EmbeddedLog
    from semel.host.engine import Engine

    engine = Engine(folder / "data")
    return Logs(lambda **s: EmbeddedLog(engine, **s), engine.close)


class Member:
    """A listener that remembers what it was told and starts where the group's offsets are, or at 0."""

    def __init__(self, log: Log, on_revoked: Callable[[Sequence[TopicPartition]], None] | None = None) -> None:
        self.log = log
        self.events: list[tuple[str, frozenset[TopicPartition]]] = []
        self.owned: set[TopicPartition] = set()
        self.on_revoked = on_revoked

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("assigned", frozenset(partitions)))
        self.owned = set(partitions)
        for at, position in self.log.committed(partitions).items():
            self.log.seek(at, position.offset if position else 0)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("revoked", frozenset(partitions)))
        if self.on_revoked is not None:
            self.on_revoked(partitions)
        self.owned.clear()

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append(("lost", frozenset(partitions)))
        self.owned.clear()


def parts(topic: str, count: int) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in range(count)]


def fill(logs: Logs, topic: str, values: dict[int, list[bytes]], partitions: int = 2) -> None:
    """Writes the values of each partition outside any transaction; creates the topic."""
    log = logs.open()
    log.create([NewTopic(topic, partitions)])
    write = log.writer(topic)
    for partition, given in values.items():
        for n, value in enumerate(given):
            write(partition, b"k%d" % n, value, 1_000 + n, None)
    log.flush()


def polled(log: Log, until: Callable[[], bool], each: Callable[[Records], None] = lambda records: None) -> None:
    """Polls until the condition holds; fails after half a minute."""
    deadline = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < deadline, "waited half a minute in vain"
        for records in log.poll(0.05):
            each(records)


def take(log: Log, count: int) -> dict[TopicPartition, list[bytes | None]]:
    """Exactly the next `count` records, by partition."""
    found: dict[TopicPartition, list[bytes | None]] = {}

    def add(records: Records) -> None:
        found.setdefault(records.source, []).extend(records.values)

    polled(log, lambda: sum(map(len, found.values())) >= count, add)
    assert sum(map(len, found.values())) == count
    return found


def read_all(log: Log, topic: str, partitions: int) -> dict[int, list[bytes | None]]:
    """Every committed value, by partition, up to the end that the log has now."""
    found = {}
    for at, end in log.ends(parts(topic, partitions)).items():
        found[at.partition] = [v for records in log.read(at, 0, end) for v in records.values]
    return found


def offsets(found: dict[TopicPartition, int]) -> dict[TopicPartition, Position]:
    return {at: Position(offset) for at, offset in found.items()}
