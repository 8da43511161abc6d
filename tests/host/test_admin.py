"""librdkafka's admin client and its consumers of both assignment kinds find what they expect of a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition

from tests.support.broker import BrokerProcess

A: Any = confluent_kafka.admin
WAIT_S = 30.0
QUIET: dict[str, Any] = {"log_level": 0}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder: Path = tmp_path_factory.mktemp("broker")
    with BrokerProcess(folder / "data") as running:
        yield running


@pytest.fixture
def admin(broker: BrokerProcess) -> Any:
    return A.AdminClient({"bootstrap.servers": broker.address, **QUIET})


def only(futures: Any) -> Any:
    """The result of a call about one thing."""
    (future,) = futures.values() if isinstance(futures, dict) else [futures]
    return future.result(WAIT_S)


def filled(
    broker: BrokerProcess, admin: Any, topic: str, partitions: int = 1, count: int = 30, **settings: Any
) -> None:
    only(admin.create_topics([A.NewTopic(topic, partitions, -1)]))
    producer = Producer({"bootstrap.servers": broker.address, "enable.idempotence": True, **QUIET, **settings})
    for number in range(count):
        producer.produce(topic, f"v{number}" * 20, partition=number % partitions, headers={"h": b"x"})
    assert producer.flush(WAIT_S) == 0


def read(consumer: Consumer, count: int) -> list[confluent_kafka.Message]:
    found: list[confluent_kafka.Message] = []
    while len(found) < count:
        message = consumer.poll(WAIT_S)
        assert message is not None, f"{len(found)} of {count} within {WAIT_S} s"
        if message.error() is None:
            found.append(message)
    return found


def test_topics(broker: BrokerProcess, admin: Any) -> None:
    """Made, refused when they are there, grown, described, emptied, deleted."""
    filled(broker, admin, "topics", 2)
    with pytest.raises(KafkaException, match="TOPIC_ALREADY_EXISTS"):
        only(admin.create_topics([A.NewTopic("topics", 1, -1)]))
    only(admin.create_topics([A.NewTopic("only-asked", 1, -1)], validate_only=True))
    assert "only-asked" not in admin.list_topics(timeout=WAIT_S).topics
    only(admin.create_partitions([A.NewPartitions("topics", 3)]))
    described = only(admin.describe_topics(confluent_kafka.TopicCollection(["topics"])))
    assert len(described.partitions) == 3
    at = TopicPartition("topics", 1)
    only(admin.delete_records([TopicPartition("topics", 1, 5)]))
    assert only(admin.list_offsets({at: A.OffsetSpec.earliest()})).offset == 5
    assert only(admin.list_offsets({at: A.OffsetSpec.latest()})).offset == 15
    assert only(admin.list_offsets({at: A.OffsetSpec.for_timestamp(1)})).offset == 5
    assert only(admin.list_offsets({at: A.OffsetSpec.max_timestamp()})).offset >= 5
    only(admin.delete_topics(["topics"]))
    assert "topics" not in admin.list_topics(timeout=WAIT_S).topics


def test_configurations(broker: BrokerProcess, admin: Any) -> None:
    """A topic's are kept and changed one by one; the broker's are shown."""
    only(admin.create_topics([A.NewTopic("configured", 1, -1, config={"cleanup.policy": "compact"})]))
    topic = A.ConfigResource(A.ResourceType.TOPIC, "configured")
    assert only(admin.describe_configs([topic]))["cleanup.policy"].value == "compact"
    change = A.ConfigEntry("retention.ms", "5000", incremental_operation=A.AlterConfigOpType.SET)
    changed = A.ConfigResource(A.ResourceType.TOPIC, "configured", incremental_configs=[change])
    only(admin.incremental_alter_configs([changed]))
    found = only(admin.describe_configs([topic]))
    assert (found["retention.ms"].value, found["cleanup.policy"].value) == ("5000", "compact")
    shown = only(admin.describe_configs([A.ConfigResource(A.ResourceType.BROKER, "1")]))
    assert shown["durability"].value == "fsync"
    assert only(admin.describe_cluster()).nodes[0].port == broker.port


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_compression(broker: BrokerProcess, admin: Any, codec: str) -> None:
    """What a client compresses comes back as it was, with its headers."""
    filled(broker, admin, f"codec-{codec}", count=100, **{"compression.type": codec, "linger.ms": 50})
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "reads-in-no-group", **QUIET})
    consumer.assign([TopicPartition(f"codec-{codec}", 0, 0)])
    messages = read(consumer, 100)
    assert [message.value() for message in messages] == [(f"v{n}" * 20).encode() for n in range(100)]
    assert messages[0].headers() == [("h", b"x")]
    consumer.close()


def test_groups(broker: BrokerProcess, admin: Any) -> None:
    """Listed, described while they live, not deleted then; their offsets read and set; deleted once empty."""
    filled(broker, admin, "grouped")
    settings = {"bootstrap.servers": broker.address, "group.id": "g", "auto.offset.reset": "earliest", **QUIET}
    consumer = Consumer(settings)
    consumer.subscribe(["grouped"])
    read(consumer, 30)
    consumer.commit(asynchronous=False)
    assert "g" in [group.group_id for group in only(admin.list_consumer_groups()).valid]
    assert only(admin.describe_consumer_groups(["g"])).state is confluent_kafka.ConsumerGroupState.STABLE
    with pytest.raises(KafkaException, match="NON_EMPTY_GROUP"):
        only(admin.delete_consumer_groups(["g"]))
    consumer.close()
    offsets = only(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("g")])).topic_partitions
    assert [(at.topic, at.offset) for at in offsets] == [("grouped", 30)]
    moved = ConsumerGroupTopicPartitions("g", [TopicPartition("grouped", 0, 3)])
    only(admin.alter_consumer_group_offsets([moved]))
    again = Consumer(settings)
    assert again.committed([TopicPartition("grouped", 0)], WAIT_S)[0].offset == 3
    again.close()
    only(admin.delete_consumer_groups(["g"]))
    assert "g" not in [group.group_id for group in only(admin.list_consumer_groups()).valid]


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_members_come_and_go(broker: BrokerProcess, admin: Any, strategy: str) -> None:
    """Eager and cooperative: two members share three partitions, the one that stays gets them all."""
    topic = f"shared-{strategy}"
    only(admin.create_topics([A.NewTopic(topic, 3, -1)]))
    settings = {
        "bootstrap.servers": broker.address,
        "group.id": f"members-{strategy}",
        "partition.assignment.strategy": strategy,
        "heartbeat.interval.ms": 100,
        **QUIET,
    }
    one, two = Consumer(settings), Consumer(settings)

    def until(*sizes: int) -> None:
        for _ in range(200):
            held = []
            for consumer in (one, two)[: len(sizes)]:
                consumer.poll(0.1)
                held.append(len(consumer.assignment()))
            if sorted(held) == sorted(sizes):
                return
        raise AssertionError(f"{held}, expected {sizes}")

    one.subscribe([topic])
    until(3)
    two.subscribe([topic])
    until(2, 1)
    two.close()
    until(3)
    one.close()
