"""A Kafka cluster as one who looks at it sees it: topics with their ends and sizes, and records outside any group.

Invariant: looking changes nothing. No group is joined, no offset committed, no topic created by asking for it, and
every question is answered or refused in bounded time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import confluent_kafka
import confluent_kafka.admin
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as At

from semel.broker import admin_messages, admin_requests, messages, requests
from semel.errors import SemelError, UsageError
from semel.host.kafka_client import Address, KafkaError, KafkaException, address, base_settings, error_of, made
from semel.host.kafka_columns import columns, ends_of, split
from semel.host.kafka_producer import PlainWriter
from semel.host.looking import END, PartitionSeen, TopicSeen, no_offset
from semel.ports import LogLost, Records, TopicPartition
from semel.wire.errors import WireError
from semel.wire.incoming import read_reply
from semel.wire.writer import write_request

_admin: Any = confluent_kafka.admin  # its names are not declared as exported

ANSWER_S_MAX = 10.0
QUIET_S_MAX = 10.0  # a partition that neither brings records nor ends for so long is lost
BATCH_RECORDS_MAX = 10_000
METADATA, METADATA_VERSION = 3, 9
LOG_DIRS, LOG_DIRS_VERSION = 35, 1


class KafkaLook:
    def __init__(self, url: str) -> None:
        self._at = address(url)
        self._client = made(_admin.AdminClient, base_settings(self._at), self._at)
        self._metadata()  # a cluster that does not answer is found out here

    def _metadata(self) -> Any:
        try:
            return self._client.list_topics(timeout=ANSWER_S_MAX)
        except KafkaException:
            raise LogLost(self._at.lost) from None

    def partitions(self, topic: str) -> int:
        """How many the topic has; UsageError when there is no such topic."""
        found = self._metadata().topics.get(topic)
        if found is None or found.error is not None:
            raise UsageError(
                f"{self._at.url}: there is no topic {topic!r}. `semel topics --on {self._at.url}` lists them."
            )
        return len(found.partitions)

    def topics(self) -> list[TopicSeen]:
        """All of them, by name."""
        known = {name: sorted(topic.partitions) for name, topic in sorted(self._metadata().topics.items())}
        every = [TopicPartition(name, index) for name, indexes in known.items() for index in indexes]
        starts = self._offsets(every, _admin.OffsetSpec.earliest())
        ends = self._offsets(every, _admin.OffsetSpec.latest())
        sizes = _sizes(self._at)
        return [
            TopicSeen(
                name,
                name.startswith("__"),
                [
                    PartitionSeen(starts[at], ends[at], sizes.get(at))
                    for at in (TopicPartition(name, index) for index in indexes)
                    if at in starts and at in ends
                ],
            )
            for name, indexes in known.items()
        ]

    def _offsets(self, partitions: Sequence[TopicPartition], spec: Any) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        asked = self._client.list_offsets({At(*at): spec for at in partitions}, request_timeout=ANSWER_S_MAX)
        found = {}
        for at, future in asked.items():
            try:
                offset = future.result(ANSWER_S_MAX).offset
                if offset < END:  # librdkafka's way to say, without an error, that nobody answered
                    raise LogLost(self._at.lost)
                found[TopicPartition(at.topic, at.partition)] = offset
            except KafkaException as failed:
                if error_of(failed).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # deleted meanwhile
                    raise LogLost(f"{self._at.url}: offsets of {at.topic}: {error_of(failed).str()}") from None
        return found

    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> dict[TopicPartition, int]:
        """The first offset at or after a time; END where there is none."""
        return self._offsets(partitions, _admin.OffsetSpec.for_timestamp(timestamp_ms))

    def records(
        self, starts: Mapping[TopicPartition, int], *, committed: bool = True, follow: bool = False
    ) -> Iterator[Records]:
        """The records of these partitions from these offsets (or START, END), each to its end as it is when it is
        reached, for a committed reader the last stable offset; with `follow` for ever."""
        consumer = made(
            Consumer,
            {
                **base_settings(self._at),
                "group.id": "semel-reads-in-no-group",  # librdkafka wants one; it is never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "allow.auto.create.topics": False,
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 100,
            },
            self._at,
        )
        try:
            consumer.assign([At(at.topic, at.partition, offset) for at, offset in starts.items()])
            left = set(starts)
            heard = time.monotonic()
            while left or follow:
                found, events = split(consumer.consume(BATCH_RECORDS_MAX, 0) or consumer.consume(1, 0.1))
                if found or events:
                    heard = time.monotonic()
                yield from columns(found)
                for event in events:
                    self._judge(event, starts)
                left -= set(ends_of(events))
                if not follow and time.monotonic() - heard > QUIET_S_MAX:
                    raise LogLost(self._at.lost)
        finally:
            consumer.close()

    def _judge(self, event: confluent_kafka.Message, starts: Mapping[TopicPartition, int]) -> None:
        error = event.error()
        assert error is not None
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:
            start = starts.get(TopicPartition(event.topic() or "", event.partition() or 0))
            raise UsageError(no_offset(self._at.url, event.topic() or "", event.partition() or 0, start))
        if code == KafkaError._ALL_BROKERS_DOWN:
            raise LogLost(self._at.lost)
        if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._FATAL):
            raise SemelError(f"{self._at.url}: {error.str()}")

    def create(self, topic: str, partitions: int) -> None:
        """Makes a topic, or leaves the one that is there."""
        created = self._client.create_topics([_admin.NewTopic(topic, partitions, -1)], request_timeout=ANSWER_S_MAX)
        try:
            created[topic].result(ANSWER_S_MAX)
        except KafkaException as failed:
            if error_of(failed).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise UsageError(f"{self._at.url}: topic {topic!r}: {error_of(failed).str()}") from None

    def writer(self) -> PlainWriter:
        """Idempotent writes without a transaction: `writer(topic)`, then `flush`."""
        return PlainWriter(self._at)

    def close(self) -> None:
        self._client = None


def _sizes(at: Address) -> dict[TopicPartition, int]:
    """Bytes per partition, asked of every broker (the client library cannot); {} where they do not say: with TLS or
    SASL in between, or forbidden. A size is worth a column, not a failure."""
    sizes: dict[TopicPartition, int] = {}
    try:
        host, _, port = at.servers.split(",")[0].rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S_MAX) as link:
            metadata = _ask(link, METADATA, METADATA_VERSION, requests.MetadataRequest(topics=()))
        assert isinstance(metadata, messages.MetadataResponse)
        for broker in metadata.brokers:
            with socket.create_connection((broker.host, broker.port), ANSWER_S_MAX) as link:
                dirs = _ask(link, LOG_DIRS, LOG_DIRS_VERSION, admin_requests.DescribeLogDirsRequest(topics=None))
            assert isinstance(dirs, admin_messages.DescribeLogDirsResponse)
            for result in dirs.results:
                for topic in result.topics:
                    for partition in topic.partitions:
                        key = TopicPartition(topic.name, partition.partition_index)
                        sizes[key] = max(sizes.get(key, 0), partition.partition_size)
    except (OSError, WireError):
        return {}
    return sizes


def _ask(link: socket.socket, api_key: int, version: int, message: Any) -> Any:
    link.settimeout(ANSWER_S_MAX)
    link.sendall(b"".join(write_request(api_key, version, 1, "semel", message)))
    size = int.from_bytes(_exactly(link, 4), signed=True)
    return read_reply(api_key, version, _exactly(link, size))


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = link.recv(min(1 << 20, size - len(data)))
        if not more:
            raise ConnectionResetError("the broker closed the connection")
        data += more
    return bytes(data)
