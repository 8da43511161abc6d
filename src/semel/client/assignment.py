"""The consumer protocol's own bytes (subscription, assignment, version 0) and Kafka's range assignor.

Invariant: every client's leader can assign to every client's members, so what lies here is what Kafka's clients write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from semel.ports import Buffer, TopicPartition

PROTOCOL_TYPE: Final = "consumer"
RANGE: Final = "range"


def subscription(topics: Sequence[str]) -> bytes:
    parts = [struct.pack(">hi", 0, len(topics))]
    for topic in sorted(topics):
        parts += _string(topic)
    parts.append(struct.pack(">i", -1))  # no user data
    return b"".join(parts)


def parse_subscription(data: Buffer) -> list[str]:
    """The topics of a subscription of any version: later versions only add."""
    raw = bytes(data)
    (count,) = struct.unpack_from(">i", raw, 2)
    position = 6
    topics = []
    for _ in range(count):
        topic, position = _read_string(raw, position)
        topics.append(topic)
    return topics


def assignment(partitions: Iterable[TopicPartition]) -> bytes:
    topics: dict[str, list[int]] = {}
    for at in sorted(partitions):
        topics.setdefault(at.topic, []).append(at.partition)
    parts = [struct.pack(">hi", 0, len(topics))]
    for topic, indexes in topics.items():
        parts += _string(topic)
        parts.append(struct.pack(f">i{len(indexes)}i", len(indexes), *indexes))
    parts.append(struct.pack(">i", -1))
    return b"".join(parts)


def parse_assignment(data: Buffer) -> list[TopicPartition]:
    raw = bytes(data)
    if not raw:
        return []
    (topics,) = struct.unpack_from(">i", raw, 2)
    position = 6
    found = []
    for _ in range(topics):
        topic, position = _read_string(raw, position)
        (count,) = struct.unpack_from(">i", raw, position)
        indexes = struct.unpack_from(f">{count}i", raw, position + 4)
        position += 4 + 4 * count
        found += [TopicPartition(topic, index) for index in indexes]
    return found


def assign_range(
    members: Mapping[str, tuple[str | None, Sequence[str]]], partitions: Mapping[str, int]
) -> dict[str, list[TopicPartition]]:
    """Kafka's RangeAssignor: for each topic, consecutive partitions to its members, static ones first, in order of
    their ids. `members`: member id -> (instance id, topics)."""
    given: dict[str, list[TopicPartition]] = {member: [] for member in members}
    order = sorted(members, key=lambda member: (members[member][0] is None, members[member][0] or member))
    for topic in sorted({topic for _, topics in members.values() for topic in topics}):
        takers = [member for member in order if topic in members[member][1]]
        each, more = divmod(partitions.get(topic, 0), len(takers))
        start = 0
        for index, member in enumerate(takers):
            end = start + each + (index < more)
            given[member] += [TopicPartition(topic, partition) for partition in range(start, end)]
            start = end
    return given


def _string(text: str) -> tuple[bytes, bytes]:
    raw = text.encode()
    return struct.pack(">h", len(raw)), raw


def _read_string(raw: bytes, position: int) -> tuple[str, int]:
    (size,) = struct.unpack_from(">h", raw, position)
    return raw[position + 2 : position + 2 + size].decode(), position + 2 + size
