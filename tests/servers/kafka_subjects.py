"""A topic of another Kafka cluster as a subject of the contract kit. `make` functions stand at module level: processes
that are killed import them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import confluent_kafka
import msgspec
from confluent_kafka.admin import AdminClient

from semel.ports import SinkConnection
from semel.sinks import KafkaTopic
from semel.testing.contracts import Loses, Subject
from tests.support.proxy import END_TXN, Proxy

HAND_OVER_S = 10.0
PARTITIONS = 3
# The records of a test are of 1970, and Apache Kafka's retention goes by the records' own times.
KEEPING = {"log.retention.ms": "-1"}
TOO_LARGE = b'{"id": "p", "n": 0, "more": "%b"}' % (b"x" * 1_048_588)

Message = tuple[bytes | None, bytes | None, int, int]  # key, value, ms, partition


def by_field(address: str, suffix: str) -> KafkaTopic:
    return KafkaTopic(
        f"kafka://{address}", "entries", key="id", partitions=PARTITIONS, hand_over_s=HAND_OVER_S
    ).renamed(suffix)


def by_stream(address: str, suffix: str) -> KafkaTopic:
    return KafkaTopic(f"kafka://{address}", "entries", partitions=PARTITIONS, hand_over_s=HAND_OVER_S).renamed(suffix)


def ready(address: str) -> None:
    """Returns when transactions are served: their coordinator is loaded after the broker has begun to answer."""
    settings = {"bootstrap.servers": address, "transactional.id": "a-test", "log_level": 0}
    confluent_kafka.Producer(settings).init_transactions(60)


def messages(address: str, topic: str) -> list[Message]:
    """What a reader of committed records finds, by the client library alone; partition by partition, in order. Up to
    the ends as they are: Apache Kafka answers a commit before its markers are written, and shows it a moment later."""
    ends = {}
    with contextlib.closing(_consumer(address, "read_uncommitted")) as looking:
        until = time.monotonic() + 3
        while True:
            known = looking.list_topics(topic, timeout=10).topics[topic]
            error = known.error or next((p.error for p in known.partitions.values() if p.error), None)
            if error is None and known.partitions:
                break
            if time.monotonic() > until:
                return []  # there is no such topic
        for p in known.partitions:
            ends[p] = looking.get_watermark_offsets(confluent_kafka.TopicPartition(topic, p), timeout=10)[1]
    found: list[Message] = []
    with contextlib.closing(_consumer(address, "read_committed")) as consumer:
        consumer.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in ends])
        while ends:
            came = consumer.consume(10_000, 0) or consumer.consume(1, 60)
            assert came, f"{topic}: nothing came in 60 s, and its ends are {ends}"
            for message in came:
                partition, offset = message.partition(), message.offset()
                assert partition is not None and offset is not None
                if (error := message.error()) is None:
                    found.append((message.key(), message.value(), message.timestamp()[1], partition))
                elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                    if offset >= ends.get(partition, 0):
                        ends.pop(partition, None)
                elif not error.retriable():
                    raise AssertionError(error.str())
    return found


def _consumer(address: str, isolation: str) -> confluent_kafka.Consumer:
    return confluent_kafka.Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "a-reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
        }
    )


def open_transactions(address: str, ending: str) -> Sequence[str]:
    """Partitions of topics with this ending whose stable end lies below their end. (A cluster makes topics of its own
    when somebody asks for the first time: what came between the two looks is none yet.)"""
    both: dict[tuple[str, int], list[int]] = {}
    for isolation in ("read_committed", "read_uncommitted"):
        with contextlib.closing(_consumer(address, isolation)) as consumer:
            for name, topic in consumer.list_topics(timeout=10).topics.items():
                for p in topic.partitions if ending in name else ():
                    at = confluent_kafka.TopicPartition(name, p)
                    both.setdefault((name, p), []).append(consumer.get_watermark_offsets(at, timeout=10)[1])
    twice = {at: ends for at, ends in both.items() if len(ends) == 2}
    return [f"{name}-{p} is open from {stable} to {end}" for (name, p), (stable, end) in twice.items() if stable < end]


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """The last value of each key; and every value that is there a second time: none is written twice by the kit."""
    last: dict[bytes | None, tuple[str, int] | None] = {}
    seen: set[tuple[str, int]] = set()
    repeated = []
    for key, value, _, _ in messages(address, f"entries{suffix}"):
        shown = None
        if value is not None:
            fields = msgspec.json.decode(value)
            shown = (fields["id"], fields["n"])
            repeated += [shown] if shown in seen else []
            seen.add(shown)
        last[key] = shown
    return [shown for shown in (*last.values(), *repeated) if shown is not None]


def left(address: str, suffix: str) -> Sequence[str]:
    """Topics that were not dropped."""
    topics = AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).topics
    return [name for name in topics if name.endswith(suffix)]


class _Loss:
    """EndTxn is held by a proxy; the connection is cut before it has arrived, or it is released first."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._lost = proxy, 0

    def address(self) -> str:
        return self._proxy.address

    def lose(self, connection: SinkConnection, *, after_effect: bool) -> None:
        def arrives() -> None:
            held = self._proxy.wait_held()
            self._lost += 1
            if after_effect:
                held.release()

        self._proxy.hold_next(END_TXN)
        self._waiting = threading.Thread(target=arrives, daemon=True)
        self._waiting.start()

    def lost(self) -> int:
        self._waiting.join(10)
        return self._lost


@contextlib.contextmanager
def losing(proxy: Proxy) -> Iterator[Loses]:
    yield _Loss(proxy)


def subject(make: Callable[[str, str], Any], address: str, proxy: Proxy, crash: Callable[[], None] | None) -> Subject:
    return Subject(
        make=make,
        address=address,
        read=read,
        orphans=left,
        loses=lambda: losing(proxy),
        crash=crash,
        hand_over_s=HAND_OVER_S,
        poison=(TOO_LARGE,),
        shows_repeats=True,
    )
