"""Topics as clients see them: creation on first use, by request, settings, deletion."""

from __future__ import annotations

import pytest

from semel.broker.admin_requests import (
    AlterableConfig,
    AlterConfigsRequest,
    AlterConfigsResource,
    CreatableTopic,
    CreatableTopicConfig,
    CreatePartitionsRequest,
    CreatePartitionsTopic,
    CreateTopicsRequest,
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
    DeleteTopicsRequest,
    DeleteTopicState,
    DescribeConfigsRequest,
    DescribeConfigsResource,
    IncrementalAlterableConfig,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResource,
)
from semel.broker.errors import Error
from semel.broker.requests import MetadataRequest, MetadataRequestTopic

from .world import World, batch, commit_offsets, committed


def test_a_topic_is_made_on_first_use_and_the_answer_waits_until_it_is_durable() -> None:
    """Metadata of an unknown name creates it with num.partitions; nobody hears of it before a crash cannot take it."""
    world = World(num_partitions=3)
    token = world.post(MetadataRequest((MetadataRequestTopic("orders"),)))
    assert world.answer(token) is None
    world.settle()
    (topic,) = world.answer(token).topics
    assert (topic.error_code, topic.name, len(topic.partitions)) == (0, "orders", 3)
    world.crash()
    assert world.describe("orders").topics[0].topic_id == topic.topic_id


def test_metadata_of_what_is_durable_leaves_at_once() -> None:
    """Only a reply that shows something new waits for the disk."""
    world = World()
    world.topic("orders")
    world.produce("orders", batch("x"))
    world.post(MetadataRequest((MetadataRequestTopic("new"),)))  # something is unsynced from here on
    assert world.answer(world.post(MetadataRequest((MetadataRequestTopic("orders"),)), connection=2)) is not None


def test_no_topic_is_made_when_the_client_or_the_setting_forbids_it() -> None:
    """allow_auto_topic_creation=false, or auto.create.topics.enable=false: UNKNOWN_TOPIC_OR_PARTITION."""
    assert World().describe("a", allow_auto_topic_creation=False).topics[0].error_code == (
        Error.UNKNOWN_TOPIC_OR_PARTITION
    )
    world = World(auto_create_topics_enable=False)
    assert world.describe("a").topics[0].error_code == Error.UNKNOWN_TOPIC_OR_PARTITION


def test_a_name_asked_for_twice_in_one_request_is_one_topic() -> None:
    """The second row shows the topic that the first has made."""
    first, second = World().describe("a", "a").topics
    assert first == second


def test_metadata_without_names_lists_every_topic() -> None:
    """A null list (in version 0 an empty one) means all, the broker's own included and marked."""
    world = World()
    world.topic("a")
    for message, version in ((MetadataRequest(None), 9), (MetadataRequest(()), 0)):
        found = {topic.name: topic.is_internal for topic in world.ask(message, version=version).topics}
        assert found == {"a": False, "__consumer_offsets": True, "__semel_runs": True}
    assert world.ask(MetadataRequest(()), version=9).topics == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "ä", "x" * 250])
def test_a_name_that_kafka_refuses_is_refused(name: str) -> None:
    """Names are 1 to 249 legal characters."""
    assert World().describe(name).topics[0].error_code == Error.INVALID_TOPIC


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        (CreatableTopic("a", 2, 1), Error.NONE),
        (CreatableTopic("a", -1, -1), Error.NONE),
        (CreatableTopic("there", 1, 1), Error.TOPIC_ALREADY_EXISTS),
        (CreatableTopic("a", 0, 1), Error.INVALID_PARTITIONS),
        (CreatableTopic("a", 1, 3), Error.INVALID_REPLICATION_FACTOR),
        (CreatableTopic("a/b", 1, 1), Error.INVALID_TOPIC),
        (CreatableTopic("a", 1, 1, configs=(CreatableTopicConfig("no.such", "1"),)), Error.INVALID_CONFIG),
        (CreatableTopic("a", 1, 1, configs=(CreatableTopicConfig("retention.ms", "soon"),)), Error.INVALID_CONFIG),
        (
            CreatableTopic("a", 1, 1, configs=(CreatableTopicConfig("cleanup.policy", "compact,delete"),)),
            Error.NONE,
        ),
        (
            CreatableTopic("a", 1, 1, configs=(CreatableTopicConfig("message.timestamp.type", "LogAppendTime"),)),
            Error.INVALID_CONFIG,
        ),
    ],
)
def test_create_topics(topic: CreatableTopic, error: Error) -> None:
    """Done, or the error that names what was wrong; what is refused does not exist afterwards."""
    world = World()
    world.topic("there")
    (row,) = world.ask(CreateTopicsRequest((topic,))).topics
    assert row.error_code == error
    assert (topic.name in world.state.topics) == (error in (Error.NONE, Error.TOPIC_ALREADY_EXISTS))


def test_validate_only_creates_nothing() -> None:
    """The answer is as it would be; the topic is not there."""
    world = World()
    (row,) = world.ask(CreateTopicsRequest((CreatableTopic("a", 2, 1),), validate_only=True)).topics
    assert (row.error_code, row.num_partitions) == (0, 2)
    assert "a" not in world.state.topics


def test_a_topic_made_anew_is_another_one() -> None:
    """Its id differs, its log and its committed offsets start again (FAULTS S16)."""
    world = World()
    world.topic("a")
    before = world.state.topics["a"].id
    world.produce("a", batch("x"))
    commit_offsets(world, "g", {("a", 0): 1})
    assert world.ask(DeleteTopicsRequest(topics=(DeleteTopicState("a"),))).responses[0].error_code == 0
    world.topic("a")
    assert world.state.topics["a"].id != before
    assert world.read("a") == []
    assert committed(world, "g", "a") == (0, -1)
    world.crash()
    assert world.read("a") == []
    assert committed(world, "g", "a") == (0, -1)


def test_the_files_of_a_deleted_topic_go_with_the_next_checkpoint() -> None:
    """Until then a crash may bring the topic back; after it nothing of it is left."""
    world = World()
    world.topic("a")
    world.produce("a", batch("x"))
    folder = f"{world.state.topics['a'].id.hex}-0"
    world.ask(DeleteTopicsRequest(topics=(DeleteTopicState("a"),)))
    assert folder in world.disk.list("partitions")
    world.node.checkpoint()
    world.settle()
    assert folder not in world.disk.list("partitions")
    world.crash()
    assert "a" not in world.state.topics


def test_partitions_can_only_be_added() -> None:
    """CreatePartitions: more is done, fewer is INVALID_PARTITIONS; the new ones are there after a crash."""
    world = World()
    world.topic("a", 2)
    for count, error in ((1, Error.INVALID_PARTITIONS), (2, Error.INVALID_PARTITIONS), (4, Error.NONE)):
        (row,) = world.ask(CreatePartitionsRequest((CreatePartitionsTopic("a", count),))).results
        assert row.error_code == error
    world.crash()
    assert len(world.state.topics["a"].partitions) == 4


def test_settings_of_a_topic_are_stored_and_reported() -> None:
    """IncrementalAlterConfigs sets, appends, subtracts and deletes; AlterConfigs replaces; both survive a crash."""
    world = World()
    world.topic("a", retention_ms="1000")

    def shown() -> dict[str, str]:
        request = DescribeConfigsRequest((DescribeConfigsResource(2, "a", None),))
        rows = world.ask(request).results[0].configs
        return {row.name: row.value for row in rows if row.config_source == 1}

    def alter(key: str, operation: int, value: str | None) -> int:
        resource = IncrementalAlterConfigsResource(2, "a", (IncrementalAlterableConfig(key, operation, value),))
        return int(world.ask(IncrementalAlterConfigsRequest((resource,))).responses[0].error_code)

    assert shown() == {"retention.ms": "1000"}
    assert alter("cleanup.policy", 2, "compact") == 0
    assert shown() == {"retention.ms": "1000", "cleanup.policy": "delete,compact"}
    assert alter("cleanup.policy", 3, "delete") == 0
    assert alter("retention.ms", 1, None) == 0
    assert alter("retention.ms", 0, "never") == Error.INVALID_CONFIG
    world.crash()
    assert shown() == {"cleanup.policy": "compact"}
    replaced = AlterConfigsResource(2, "a", (AlterableConfig("segment.ms", "5"),))
    assert world.ask(AlterConfigsRequest((replaced,))).responses[0].error_code == 0
    assert shown() == {"segment.ms": "5"}


def test_the_brokers_settings_are_reported_and_not_changed_by_request() -> None:
    """They are given at its start."""
    world = World(num_partitions=7)
    resource = DescribeConfigsResource(4, "1", ("num.partitions",))
    (row,) = world.ask(DescribeConfigsRequest((resource,))).results[0].configs
    assert (row.name, row.value, row.read_only) == ("num.partitions", "7", True)
    change = IncrementalAlterConfigsResource(4, "1", (IncrementalAlterableConfig("num.partitions", 0, "9"),))
    reply = world.ask(IncrementalAlterConfigsRequest((change,)))
    assert reply.responses[0].error_code == Error.INVALID_REQUEST


def test_deleted_records_are_gone_for_readers_also_after_a_crash() -> None:
    """DeleteRecords moves the start; below it is OFFSET_OUT_OF_RANGE; the window of producers stays (FAULTS B17)."""
    world = World()
    world.topic("a")
    first = batch("x", "y", producer_id=9, producer_epoch=0, base_sequence=0)
    world.produce("a", first)
    rows = (DeleteRecordsTopic("a", (DeleteRecordsPartition(0, 1), DeleteRecordsPartition(5, 0))),)
    low, unknown = world.ask(DeleteRecordsRequest(rows)).topics[0].partitions
    assert (low.error_code, low.low_watermark) == (0, 1)
    assert unknown.error_code == Error.UNKNOWN_TOPIC_OR_PARTITION
    world.crash()
    assert world.fetch("a", 0).error_code == Error.OFFSET_OUT_OF_RANGE
    assert world.read("a", offset=1) == ["y"]
    again = world.produce("a", first)
    assert (again.error_code, again.base_offset) == (0, 0)
    assert world.read("a", offset=1) == ["y"]
