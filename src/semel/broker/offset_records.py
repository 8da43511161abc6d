"""The records of `__consumer_offsets`, in Kafka's own schemas, so that Kafka's tools can read the topic.

Keys: version 0 or 1 is an offset (group, topic, partition), 2 a group. Values written here: OffsetCommitValue 3,
GroupMetadataValue 3, the last versions before the flexible ones. A null value removes what its key names.
Invariant: what `encode` writes `decode` reads back equal (tests hold it for all inputs).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from semel.errors import SemelError


class OffsetKey(NamedTuple):
    group: str
    topic: str
    partition: int


class GroupKey(NamedTuple):
    group: str


class Offset(NamedTuple):
    """A committed position."""

    offset: int
    leader_epoch: int
    metadata: str
    committed_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a classic group as the last completed rebalance left it."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True)
class Metadata:
    """A classic group as the last completed rebalance left it."""

    protocol_type: str
    generation: int
    protocol: str | None
    leader: str | None
    changed_ms: int
    members: tuple[Member, ...]


class UnreadableOffsets(SemelError):
    """A record of `__consumer_offsets` is not in a schema that is known."""


_OFFSET_KEY, _GROUP_KEY = 1, 2


def encode_key(key: OffsetKey | GroupKey) -> bytes:
    if isinstance(key, OffsetKey):
        return b"\x00\x01" + _text(key.group) + _text(key.topic) + struct.pack(">i", key.partition)
    return b"\x00\x02" + _text(key.group)


def encode_offset(offset: Offset) -> bytes:
    head = struct.pack(">hqi", 3, offset.offset, offset.leader_epoch)
    return head + _text(offset.metadata) + struct.pack(">q", offset.committed_ms)


def encode_metadata(group: Metadata) -> bytes:
    parts = [
        b"\x00\x03",
        _text(group.protocol_type),
        struct.pack(">i", group.generation),
        _text(group.protocol),
        _text(group.leader),
        struct.pack(">qi", group.changed_ms, len(group.members)),
    ]
    for member in group.members:
        parts += (
            _text(member.id),
            _text(member.instance_id),
            _text(member.client_id),
            _text(member.client_host),
            struct.pack(">ii", member.rebalance_timeout_ms, member.session_timeout_ms),
            _bytes(member.subscription),
            _bytes(member.assignment),
        )
    return b"".join(parts)


def decode_key(data: bytes) -> OffsetKey | GroupKey | None:
    """None: a key of a kind that classic groups do not have (KIP-848's), which is not ours to understand."""
    read = _Reader(data)
    version = read.int16()
    if version in (0, _OFFSET_KEY):
        return OffsetKey(read.text() or "", read.text() or "", read.int32())
    return GroupKey(read.text() or "") if version == _GROUP_KEY else None


def decode_offset(data: bytes) -> Offset:
    read = _Reader(data)
    version = read.int16()
    if version not in (1, 2, 3):
        raise UnreadableOffsets(f"__consumer_offsets holds an offset of version {version}; known are 1 to 3.")
    offset = read.int64()
    epoch = read.int32() if version == 3 else -1
    return Offset(offset, epoch, read.text() or "", read.int64())


def decode_metadata(data: bytes) -> Metadata:
    read = _Reader(data)
    version = read.int16()
    if version != 3:
        raise UnreadableOffsets(f"__consumer_offsets holds a group of version {version}; known is 3.")
    protocol_type, generation, protocol, leader = read.text(), read.int32(), read.text(), read.text()
    changed_ms, count = read.int64(), read.int32()
    members = tuple(
        Member(
            read.text() or "",
            read.text(),
            read.text() or "",
            read.text() or "",
            read.int32(),
            read.int32(),
            read.blob(),
            read.blob(),
        )
        for _ in range(count)
    )
    return Metadata(protocol_type or "", generation, protocol, leader, changed_ms, members)


def partition_for(group: str, partitions: int) -> int:
    """The partition that holds a group: Java's String.hashCode, as Kafka does."""
    code = 0
    for unit in _units(group):
        code = (code * 31 + unit) & 0xFFFFFFFF
    return (code & 0x7FFFFFFF) % partitions


def _units(text: str) -> tuple[int, ...]:
    raw = text.encode("utf-16-be", "surrogatepass")
    return struct.unpack(f">{len(raw) // 2}H", raw)


def _text(value: str | None) -> bytes:
    if value is None:
        return b"\xff\xff"
    raw = value.encode()
    return struct.pack(">h", len(raw)) + raw


def _bytes(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def _number(self, layout: str, size: int) -> int:
        try:
            (value,) = struct.unpack_from(layout, self.data, self.at)
        except struct.error:
            raise UnreadableOffsets(f"a record of __consumer_offsets ends in mid-field: {self.data!r}") from None
        self.at += size
        return int(value)

    def int16(self) -> int:
        return self._number(">h", 2)

    def int32(self) -> int:
        return self._number(">i", 4)

    def int64(self) -> int:
        return self._number(">q", 8)

    def text(self) -> str | None:
        size = self.int16()
        try:
            return None if size < 0 else self._take(size).decode()
        except UnicodeDecodeError:
            raise UnreadableOffsets(
                f"a record of __consumer_offsets has text that is no UTF-8: {self.data!r}"
            ) from None

    def blob(self) -> bytes:
        size = self.int32()
        return b"" if size < 0 else self._take(size)

    def _take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        if len(taken) != size:
            raise UnreadableOffsets(f"a record of __consumer_offsets ends in mid-field: {self.data!r}")
        self.at += size
        return taken
