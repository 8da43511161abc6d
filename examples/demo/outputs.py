"""Looking from outside: how far a run is, when nothing is left to do, what came out. Joins no group, writes nothing.

`done` asks the logs and the sinks themselves: nothing visible beyond the committed offsets, no transaction open, and
nothing in an outbox beyond the positions that lie beside the rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from examples.demo.data import Alert, Day, Total

APP = "flights"
REPARTITION = "flights-days-repartition"
OUTBOXES = {"totals": "flights-totals-outbox", "alerts": "flights-alerts-outbox"}
ASK_S = 5.0
SILENCE_S = 30.0


class Watch:
    """One log, seen from outside."""

    def __init__(self, address: str, topic: str, partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions
        self._settings = {
            "bootstrap.servers": address,
            "group.id": APP,  # to ask for its offsets; it is never joined, and nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,
        }
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        self._asks = Consumer({**self._settings, "isolation.level": "read_uncommitted"})

    def create(self) -> None:
        self._admin.create_topics([NewTopic(self.topic, num_partitions=self.partitions)])[self.topic].result(20)

    def close(self) -> None:
        self._asks.close()

    def _parts(self, topic: str) -> list[TopicPartition]:
        described = self._admin.list_topics(topic, timeout=ASK_S).topics[topic]
        return [TopicPartition(topic, n) for n in sorted(described.partitions)]

    def positions(self, topic: str) -> dict[int, int]:
        """The group's committed offsets; 0 where there is none."""
        found = self._asks.committed(self._parts(topic), timeout=ASK_S)
        return {at.partition: max(0, at.offset) for at in found}

    def committed(self, topic: str) -> int:
        """Their sum; 0 while nobody can say (the broker is being killed, after all)."""
        try:
            wanted = [TopicPartition(topic, n) for n in range(self.partitions)]
            return sum(max(0, at.offset) for at in self._asks.committed(wanted, timeout=0.3))
        except KafkaException:
            return 0

    def end(self, topic: str) -> int:
        return sum(self._asks.get_watermark_offsets(at, timeout=ASK_S)[1] for at in self._parts(topic))

    def done(self, dsn: str, sqlite: Path) -> bool:
        """Nothing is left to read, to decide or to deliver. False where nobody can say."""
        try:
            return (
                self._nothing_after(self.topic, self.positions(self.topic))
                and self._nothing_after(REPARTITION, self.positions(REPARTITION))
                and self._nothing_after(OUTBOXES["totals"], postgres_positions(dsn))
                and self._nothing_after(OUTBOXES["alerts"], sqlite_positions(sqlite))
            )
        except (KafkaException, KeyError, psycopg.Error, sqlite3.Error):
            return False

    def _nothing_after(self, topic: str, positions: Mapping[int, int]) -> bool:
        parts = self._parts(topic)
        with self._reader() as reader:
            for at in parts:
                stable = reader.get_watermark_offsets(at, timeout=ASK_S)[1]  # of a read_committed reader: the LSO
                if stable < self._asks.get_watermark_offsets(at, timeout=ASK_S)[1]:
                    return False
            reader.assign([TopicPartition(topic, at.partition, positions.get(at.partition, 0)) for at in parts])
            return next(_to_the_end(reader, len(parts)), None) is None

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Consumer]:
        reader = Consumer({**self._settings, "isolation.level": "read_committed", "fetch.queue.backoff.ms": 5})
        try:
            yield reader
        finally:
            reader.close()

    def totals(self) -> list[tuple[Day, Total]]:
        """Every committed record of the topic `totals`; of one day in the order of the log."""
        parts = [TopicPartition(at.topic, at.partition, 0) for at in self._parts("totals")]
        with self._reader() as reader:
            reader.assign(parts)
            return [_total(value) for value in _to_the_end(reader, len(parts))]


def _to_the_end(reader: Consumer, partitions: int) -> Iterator[bytes]:
    """The values of an assigned reader, until every partition has reached its end."""
    ended: set[int] = set()
    heard = time.monotonic()
    while len(ended) < partitions:
        messages = reader.consume(10_000, 0.1)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENCE_S:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for message in messages:
            error = message.error()
            if error is None:
                yield message.value() or b""
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition() or 0)
            elif error.fatal():
                raise KafkaException(error)


class _Told(msgspec.Struct):
    carrier: str
    day: str
    flights: int
    cancelled: int
    delay: int
    worst: int


_decoded = msgspec.json.Decoder(_Told).decode


def _total(value: bytes) -> tuple[Day, Total]:
    found = _decoded(value)
    return (found.carrier, found.day), Total(found.flights, found.cancelled, found.delay, found.worst)


def postgres_totals(dsn: str) -> tuple[dict[Day, Total], int]:
    """The table's rows by key, and how many there were before they became a mapping."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT carrier, day, flights, cancelled, delay, worst FROM totals").fetchall()
    return {(row[0], str(row[1])): Total(*row[2:]) for row in rows}, len(rows)


def postgres_positions(dsn: str) -> dict[int, int]:
    with psycopg.connect(dsn) as connection:
        return dict(connection.execute("SELECT partition, position FROM semel_positions").fetchall())


def sqlite_alerts(path: Path) -> list[Alert]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [Alert(*row) for row in connection.execute(f"SELECT {', '.join(Alert._fields)} FROM alerts")]


def sqlite_positions(path: Path) -> dict[int, int]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT partition, position FROM semel_positions").fetchall())
