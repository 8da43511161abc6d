"""What is asked of a cluster outside any group: topics, their settings, their ends.

Invariant: a question is repeated until it is answered or its patience is over; what cannot pass by itself is raised at
once; and no answer is taken for one that the client library made up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import confluent_kafka
import confluent_kafka.admin
from confluent_kafka import TopicPartition as At

from semel.host.kafka_client import Address, KafkaError, KafkaException, base_settings, error_of, made
from semel.ports import Done, LogLost, NewTopic, NotDone, TopicInfo, TopicPartition

R = TypeVar("R")

ASK_TIMEOUT_S = 5.0

_kafka: Any = confluent_kafka.admin  # its names are not declared as exported

# What passes by itself: brokers that restart, leaders that move, topics just created.
PASSING = frozenset(
    {
        KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE,
        KafkaError._WAIT_COORD, KafkaError._TIMED_OUT_QUEUE, KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._PARTITION_EOF, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION, KafkaError.REBALANCE_IN_PROGRESS, KafkaError._NODE_UPDATE,
        KafkaError.UNKNOWN_TOPIC_ID, KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)  # fmt: skip


STALE = frozenset(
    {
        KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION,
    }
)  # fmt: skip

LOOK_S = 1.0  # for a question asked now and then, whose answer can wait


class Admin:
    """One AdminClient, made when it is first asked and kept alive until `close`."""

    def __init__(self, at: Address) -> None:
        self._at = at
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            # Errors are told by the answers; without the callback the client would print them.
            settings = {**base_settings(self._at), "error_cb": lambda error: None}
            self._made = made(_kafka.AdminClient, settings, self._at)
        return self._made

    def ask(self, what: str, call: Callable[[float], R], patience_s: Callable[[], float] | None = None) -> R:
        """Repeats a read-only question until it is answered, in bounded time."""
        began = time.monotonic()
        while True:
            patience = (patience_s or self._at.patience_s)()
            try:
                return call(min(ASK_TIMEOUT_S, patience))
            except (KafkaException, FutureTimeout) as failed:
                error = error_of(failed)
                passing = isinstance(failed, FutureTimeout) or error.code() in PASSING or error.retriable()
                if not passing:
                    raise LogLost(f"{self._at.url}: {what}: {error.str()}") from failed
                if time.monotonic() - began >= patience:
                    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                        raise LogLost(f"{self._at.url}: {what}: there is no such topic") from failed
                    reason = "no answer" if isinstance(failed, FutureTimeout) else error.str()
                    raise LogLost(f"{self._at.lost} ({what}: {reason})") from failed
                time.sleep(0.02)
                if error.code() in STALE:
                    # The client asks under what it knows of the leaders, and does not learn by itself that a broker
                    # has started again: without this a question stays refused until its patience is over.
                    with contextlib.suppress(KafkaException):
                        self._client.list_topics(timeout=ASK_TIMEOUT_S)

    def connect(self, patience_s: float = 10.0) -> None:
        """LogLost when no broker answers within `patience_s`."""
        self.ask("first connection", lambda s: self._client.list_topics(timeout=s), lambda: patience_s)

    def topics(self) -> Mapping[str, TopicInfo]:
        metadata = self.ask("list topics", lambda s: self._client.list_topics(timeout=s))
        counts = {name: len(topic.partitions) for name, topic in metadata.topics.items()}
        if not counts:
            return {}

        ids = self.ask("describe topics", lambda timeout_s: self._described(list(counts), timeout_s))
        return {name: TopicInfo(name, ids[name], partitions) for name, partitions in counts.items() if name in ids}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str] | None:
        try:
            return self._described(names, LOOK_S)
        except (KafkaException, FutureTimeout):
            return None

    def _described(self, names: Sequence[str], timeout_s: float) -> dict[str, str]:
        asked = self._client.describe_topics(confluent_kafka.TopicCollection(list(names)), request_timeout=timeout_s)
        ids: dict[str, str] = {}
        for name, future in asked.items():
            try:
                ids[name] = _uuid_text(future.result(timeout_s).topic_id)
            except KafkaException as gone:
                if error_of(gone).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        return ids

    def config(self, topic: str) -> Mapping[str, str]:
        resource = _kafka.ConfigResource(_kafka.ResourceType.TOPIC, topic)

        def described(timeout_s: float) -> Mapping[str, str]:
            future: Future[Any] = self._client.describe_configs([resource], request_timeout=timeout_s)[resource]
            return {name: entry.value for name, entry in future.result(timeout_s).items() if entry.value is not None}

        return self.ask(f"configuration of {topic}", described)

    def create(self, topics: Sequence[NewTopic]) -> None:
        if not topics:
            return
        wanted = {topic.name: topic for topic in topics}

        def created(timeout_s: float) -> None:
            asked = self._client.create_topics(
                [_kafka.NewTopic(t.name, t.partitions, -1, config=dict(t.config)) for t in wanted.values()],
                request_timeout=timeout_s,
            )
            for name, future in asked.items():
                try:
                    future.result(timeout_s)
                except KafkaException as failed:
                    if error_of(failed).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
                wanted.pop(name, None)

        self.ask(f"create {', '.join(wanted)}", created)

        # A topic can be used once its partitions have leaders; asking for their ends waits for that.
        def known(timeout_s: float) -> list[TopicPartition]:
            found = self._client.list_topics(timeout=timeout_s).topics
            if missing := [topic.name for topic in topics if topic.name not in found]:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"{missing[0]}: not there yet"))
            return [TopicPartition(topic.name, p) for topic in topics for p in found[topic.name].partitions]

        self.ends(self.ask("list topics", known))

    def _listed(self, partitions: Sequence[TopicPartition], spec: Any, what: str) -> Mapping[TopicPartition, int]:
        if not partitions:
            return {}

        def listed(timeout_s: float) -> dict[TopicPartition, int]:
            asked = self._client.list_offsets(
                {At(at.topic, at.partition): spec for at in partitions},
                isolation_level=confluent_kafka.IsolationLevel.READ_UNCOMMITTED,
                request_timeout=timeout_s,
            )
            found = {TopicPartition(at.topic, at.partition): f.result(timeout_s).offset for at, f in asked.items()}
            # Where the connection went, librdkafka answers -1001 without an error: taken for an end, a restore would
            # read nothing, and a delivery would find its log shorter than its sink (the demo, seed 2).
            if min(found.values()) < 0:
                raise FutureTimeout
            return found

        names = sorted({at.topic for at in partitions})
        return self.ask(f"{what} of {', '.join(names)}", listed)

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._listed(partitions, _kafka.OffsetSpec.latest(), "ends")

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._listed(partitions, _kafka.OffsetSpec.earliest(), "starts")

    def truncate(self, before: Mapping[TopicPartition, int]) -> Done | NotDone:
        asked = self._client.delete_records(
            [At(at.topic, at.partition, offset) for at, offset in before.items()], request_timeout=ASK_TIMEOUT_S
        )
        for at, future in asked.items():
            try:
                future.result(ASK_TIMEOUT_S)
            except (KafkaException, FutureTimeout) as failed:
                told = "no answer" if isinstance(failed, FutureTimeout) else error_of(failed).str()
                return NotDone(f"{at.topic}-{at.partition}: {told}")
        return Done()

    def replicas(self, topic: str) -> int:
        """How many copies the topic has, of the partition that has the fewest."""
        found = self.ask(f"replicas of {topic}", lambda s: self._client.list_topics(topic, timeout=s)).topics[topic]
        return min((len(partition.replicas) for partition in found.partitions.values()), default=0)

    def delete(self, topics: Sequence[str]) -> None:
        """Returns when they are not there any more."""

        def deleted(timeout_s: float) -> None:
            for future in self._client.delete_topics(list(topics), request_timeout=timeout_s).values():
                try:
                    future.result(timeout_s)
                except KafkaException as failed:
                    if error_of(failed).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
            if left := set(topics) & self._client.list_topics(timeout=timeout_s).topics.keys():
                raise FutureTimeout(f"{min(left)} is still there")

        if topics:
            self.ask(f"delete {', '.join(topics)}", deleted)

    def broker_setting(self, name: str) -> str | None:
        """A setting as the brokers have it; None where it is not known, or not for us to know."""
        brokers = self.ask("list brokers", lambda s: self._client.list_topics(timeout=s)).brokers
        resource = _kafka.ConfigResource(_kafka.ResourceType.BROKER, str(min(brokers)))
        try:
            asked = self._client.describe_configs([resource], request_timeout=ASK_TIMEOUT_S)[resource]
            entry = asked.result(ASK_TIMEOUT_S).get(name)
        except (KafkaException, FutureTimeout):
            return None
        return None if entry is None else entry.value

    def close(self) -> None:
        self._made = None


def _uuid_text(uuid: object) -> str:
    """As Kafka writes topic ids; librdkafka's text is of the other base64 alphabet."""
    return str(uuid).translate(str.maketrans("+/", "-_"))
