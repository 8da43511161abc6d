"""From librdkafka's messages to columns: the only code on the read path that is paid per record.

Invariant: within each `Records`, offsets rise, and nothing of the batch is dropped except error events, which are
handed back beside the columns. Costs stay per column (a C method mapped over the batch), never a Python statement
per record.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count, pairwise, repeat
from operator import is_, ne, or_

from confluent_kafka import KafkaError, Message

from semel.ports import Headers, LogLost, Records, TopicPartition

_error, _topic, _partition = Message.error, Message.topic, Message.partition
_offset, _key, _value, _timestamp, _headers = (
    Message.offset,
    Message.key,
    Message.value,
    Message.timestamp,
    Message.headers,
)


# A batch fails its checksum (check.crcs), or the broker says that it cannot read there.
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError.INVALID_MSG})


def split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Records, and error events. LogLost for a damaged batch: the client library drops it and goes on behind it."""
    errors = list(map(_error, messages))
    # By identity: a KafkaError cannot be compared with None.
    if all(map(is_, errors, repeat(None))):
        return messages, []
    for message, error in zip(messages, errors):
        if error is not None and error.code() in _DAMAGED:
            topic, partition = message.topic(), message.partition()
            raise LogLost(
                f"{topic} partition {partition}: the log is damaged there: {error.str()}. Nothing of that batch or "
                "behind it is used. Restore the broker's folder (or the replica) from one that is intact; what lies "
                f"before it can still be read: `semel read {topic} --partition {partition} --on URL`."
            )
    return (
        [message for message, error in zip(messages, errors) if error is None],
        [message for message, error in zip(messages, errors) if error is not None],
    )


def ends_of(events: Sequence[Message]) -> dict[TopicPartition, int]:
    """The ends of partitions among the events: where the reader stands, past control and aborted records."""
    ends: dict[TopicPartition, int] = {}
    for event in events:
        error, topic, partition, offset = event.error(), event.topic(), event.partition(), event.offset()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            assert topic is not None and partition is not None and offset is not None
            ends[TopicPartition(topic, partition)] = offset
    return ends


def columns(messages: list[Message]) -> list[Records]:
    """One `Records` per partition. The messages of one partition are in offset order; partitions interleave."""
    if not messages:
        return []
    topics, partitions = list(map(_topic, messages)), list(map(_partition, messages))
    offsets, keys, values = list(map(_offset, messages)), list(map(_key, messages)), list(map(_value, messages))
    timestamps = [stamp for _, stamp in map(_timestamp, messages)]
    headers: list[Headers] | None = None
    given = list(map(_headers, messages))
    if given.count(None) != len(given):
        headers = [() if header is None else header for header in given]  # type: ignore[misc]
    # A run ends where the topic or the partition differs from the record before.
    changes = map(or_, map(ne, topics, topics[1:]), map(ne, partitions, partitions[1:]))
    bounds = [0, *compress(count(1), changes), len(messages)]
    whole: dict[TopicPartition, Records] = {}
    for start, end in pairwise(bounds):
        topic, partition, last = topics[start], partitions[start], offsets[end - 1]
        assert topic is not None and partition is not None and last is not None
        source = TopicPartition(topic, partition)
        first, epoch = messages[start].leader_epoch(), messages[end - 1].leader_epoch()
        run = Records(
            source,
            offsets[start:end],  # type: ignore[arg-type]
            timestamps[start:end],
            keys[start:end],
            values[start:end],
            None if headers is None else headers[start:end],
            last + 1,
            -1 if epoch is None else epoch,
            -1 if first is None else first,
        )
        before = whole.get(source)
        whole[source] = run if before is None else _joined(before, run)
    return list(whole.values())


def _joined(a: Records, b: Records) -> Records:
    return b._replace(
        offsets=[*a.offsets, *b.offsets],
        timestamps=[*a.timestamps, *b.timestamps],
        keys=[*a.keys, *b.keys],
        values=[*a.values, *b.values],
        headers=None if a.headers is None or b.headers is None else [*a.headers, *b.headers],
        first_epoch=a.first_epoch,
    )


def empty(source: TopicPartition, next_offset: int) -> Records:
    """Nothing visible up to `next_offset`."""
    return Records(source, (), (), (), (), None, next_offset, -1)
