"""Positions in the log: ListOffsets and OffsetForLeaderEpoch.

Invariant (FAULTS B27): no position is shown that a power cut could take back. Ends are the high watermark and the last
stable offset, which never pass what is durable, so every reply leaves at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from semel.broker.errors import Error
from semel.broker.events import NOW, Ready, Reply, Request
from semel.broker.fetch import READ_COMMITTED, met
from semel.broker.messages import (
    ListOffsetsPartitionResponse,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
    OffsetForLeaderEpochEpochEndOffset,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)
from semel.log.errors import CorruptSegment
from semel.log.partition import Partition
from semel.record.errors import CorruptBatch

if TYPE_CHECKING:
    from semel.broker.core import Broker

# Timestamps that are questions.
LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3
EARLIEST_LOCAL: Final = -4
TIERED: Final = (-5, -6)  # latest tiered, earliest pending upload: nothing is tiered here


def list_offsets(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    committed = getattr(message, "isolation_level", 0) == READ_COMMITTED
    topics = []
    for wanted_topic in message.topics:
        topic = broker.state.topics.get(wanted_topic.name)
        found = []
        for wanted in wanted_topic.partitions:
            partition = None if topic is None else topic.partition(wanted.partition_index)
            found.append(_position(broker, wanted_topic.name, partition, wanted, committed))
        topics.append(ListOffsetsTopicResponse(wanted_topic.name, found))
    return Ready((), (Reply(request.connection, request.token, ListOffsetsResponse(topics=topics), NOW),))


def _position(
    broker: Broker, topic: str, partition: Partition | None, wanted: Any, committed: bool
) -> ListOffsetsPartitionResponse:
    index = wanted.partition_index
    if partition is None:
        return ListOffsetsPartitionResponse(index, Error.UNKNOWN_TOPIC_OR_PARTITION)
    run = broker.state.run
    current = getattr(wanted, "current_leader_epoch", -1)
    if current not in (-1, run):
        error = Error.FENCED_LEADER_EPOCH if current < run else Error.UNKNOWN_LEADER_EPOCH
        return ListOffsetsPartitionResponse(index, error)
    end = partition.last_stable_offset if committed else partition.high_watermark
    timestamp = wanted.timestamp
    if timestamp == LATEST:
        return ListOffsetsPartitionResponse(index, 0, -1, end, run)
    if timestamp in (EARLIEST, EARLIEST_LOCAL):
        return ListOffsetsPartitionResponse(index, 0, -1, partition.start_offset, run)
    if timestamp in TIERED:
        return ListOffsetsPartitionResponse(index, 0, -1, -1, -1)
    if timestamp == MAX_TIMESTAMP:
        timestamp = partition.max_timestamp
    try:
        found = partition.offset_for_time(timestamp, committed=committed) if timestamp >= 0 else None
    except (CorruptSegment, CorruptBatch) as damage:
        met(broker, topic, index, -1, damage)
        return ListOffsetsPartitionResponse(index, Error.CORRUPT_MESSAGE)
    if found is None:
        return ListOffsetsPartitionResponse(index, 0, -1, -1, -1)
    offset, time = found
    return ListOffsetsPartitionResponse(index, 0, time, offset, partition.epoch_at(offset))


def offset_for_leader_epoch(broker: Broker, request: Request, now_ms: int) -> Ready:
    topics = []
    for wanted_topic in request.message.topics:
        topic = broker.state.topics.get(wanted_topic.topic)
        found = []
        for wanted in wanted_topic.partitions:
            partition = None if topic is None else topic.partition(wanted.partition)
            found.append(_epoch_end(broker, partition, wanted))
        topics.append(OffsetForLeaderTopicResult(wanted_topic.topic, found))
    response = OffsetForLeaderEpochResponse(topics=topics)
    return Ready((), (Reply(request.connection, request.token, response, NOW),))


def _epoch_end(broker: Broker, partition: Partition | None, wanted: Any) -> OffsetForLeaderEpochEpochEndOffset:
    index, run = wanted.partition, broker.state.run
    if partition is None:
        return OffsetForLeaderEpochEpochEndOffset(Error.UNKNOWN_TOPIC_OR_PARTITION, index)
    current = getattr(wanted, "current_leader_epoch", -1)
    if current not in (-1, run):
        error = Error.FENCED_LEADER_EPOCH if current < run else Error.UNKNOWN_LEADER_EPOCH
        return OffsetForLeaderEpochEpochEndOffset(error, index)
    epoch, end_offset = partition.epoch_end(wanted.leader_epoch)
    return OffsetForLeaderEpochEpochEndOffset(0, index, epoch, min(end_offset, partition.high_watermark))
