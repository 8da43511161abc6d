"""What is durable of groups: offsets, offsets of open transactions, and each group as its last rebalance left it.

It is the fold of `__consumer_offsets`: every batch of that topic is applied here, markers too, record by record.
Invariant (FAULTS B13): the state after a replay equals the state before, because there is no other way into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from semel.broker.offset_records import (
    GroupKey,
    Metadata,
    Offset,
    OffsetKey,
    decode_key,
    decode_metadata,
    decode_offset,
    encode_metadata,
    encode_offset,
    partition_for,
)
from semel.broker.records import GroupState
from semel.ports import Buffer
from semel.record.batch import Batch, columns, headers_only
from semel.record.control import parse_marker

Place = tuple[str, int]  # topic name, partition


class Stored(NamedTuple):
    """A committed offset and where in `__consumer_offsets` it stands: of two, the later record wins."""

    value: Offset
    log_offset: int


@dataclass(slots=True)
class Group:
    """The durable part of one group."""

    id: str
    partition: int  # of __consumer_offsets
    offsets: dict[Place, Stored] = field(default_factory=dict)
    pending: dict[int, dict[Place, Stored]] = field(default_factory=dict)  # by producer id, transaction open
    metadata: Metadata | None = None
    generation: int = 0  # the highest that was ever handed out
    position: int = 0  # in the journal, of its last change

    @property
    def is_empty(self) -> bool:
        return not self.offsets and not self.pending and self.metadata is None and self.generation == 0

    def is_unstable(self, place: Place) -> bool:
        return any(place in offsets for offsets in self.pending.values())


class Groups:
    """All groups. Changed only by `apply_batch`, `generation_given` and `restore`, which the broker's apply calls."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.groups: dict[str, Group] = {}
        self.by_producer: dict[int, set[str]] = {}  # which groups hold pending offsets of a producer

    def get(self, group_id: str) -> Group | None:
        return self.groups.get(group_id)

    def partition_of(self, group_id: str) -> int:
        group = self.groups.get(group_id)
        return partition_for(group_id, self.partitions) if group is None else group.partition

    # --- Applying

    def generation_given(self, group_id: str, generation: int, position: int) -> None:
        group = self._group(group_id)
        group.generation = max(group.generation, generation)
        group.position = position

    def apply_batch(self, partition: int, data: Buffer, position: int) -> None:
        """One batch of `__consumer_offsets`, already at its place."""
        batch = headers_only(data)
        if batch.is_control:
            self._settle(partition, batch, position)
            return
        found = columns(batch)
        for log_offset, raw_key, value in zip(found.offsets, found.keys, found.values):
            key = decode_key(raw_key or b"")
            if isinstance(key, OffsetKey):
                stored = None if value is None else Stored(decode_offset(value), log_offset)
                self._offset(key, stored, batch.producer_id if batch.is_transactional else None, position)
            elif isinstance(key, GroupKey):
                self._metadata(key.group, value, position)

    def _offset(self, key: OffsetKey, stored: Stored | None, producer_id: int | None, position: int) -> None:
        group = self._group(key.group)
        group.position = position
        place = (key.topic, key.partition)
        if producer_id is not None:
            if stored is not None:
                group.pending.setdefault(producer_id, {})[place] = stored
                self.by_producer.setdefault(producer_id, set()).add(group.id)
        elif stored is not None:
            group.offsets[place] = stored
        else:
            group.offsets.pop(place, None)
            # An offset that is deleted is deleted for open transactions too: its partition may be another's by now.
            for pending_id, offsets in list(group.pending.items()):
                offsets.pop(place, None)
                if not offsets:
                    del group.pending[pending_id]
                    self.by_producer[pending_id].discard(group.id)
                    if not self.by_producer[pending_id]:
                        del self.by_producer[pending_id]
            self._forget_if_empty(group)

    def _metadata(self, group_id: str, value: bytes | None, position: int) -> None:
        group = self._group(group_id)
        group.position = position
        if value is None:
            group.metadata = None
            group.generation = 0  # the group is deleted: no member of it is left
            self._forget_if_empty(group)
        else:
            group.metadata = decode_metadata(value)
            group.generation = max(group.generation, group.metadata.generation)

    def _settle(self, partition: int, batch: Batch, position: int) -> None:
        marker = parse_marker(batch)
        if marker is None:
            return
        waiting = self.by_producer.get(batch.producer_id, set())
        for group_id in sorted(waiting):
            group = self.groups[group_id]
            if group.partition != partition:
                continue
            waiting.discard(group_id)
            group.position = position
            for place, stored in group.pending.pop(batch.producer_id, {}).items():
                present = group.offsets.get(place)
                # A plain commit that came after it in the log wins, as in Kafka.
                if marker.commit and (present is None or present.log_offset < stored.log_offset):
                    group.offsets[place] = stored
            self._forget_if_empty(group)
        if not waiting:
            self.by_producer.pop(batch.producer_id, None)

    def _group(self, group_id: str) -> Group:
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = Group(group_id, partition_for(group_id, self.partitions))
        return group

    def _forget_if_empty(self, group: Group) -> None:
        if group.is_empty:
            del self.groups[group.id]

    # --- Checkpoints

    def checkpoint(self) -> list[GroupState]:
        return [
            GroupState(
                group.id,
                group.generation,
                None if group.metadata is None else encode_metadata(group.metadata),
                tuple(
                    (*place, stored.log_offset, encode_offset(stored.value)) for place, stored in _sorted(group.offsets)
                ),
                tuple(
                    (producer_id, *place, stored.log_offset, encode_offset(stored.value))
                    for producer_id, offsets in sorted(group.pending.items())
                    for place, stored in _sorted(offsets)
                ),
            )
            for _, group in sorted(self.groups.items())
        ]

    def restore(self, record: GroupState, position: int) -> None:
        group = self._group(record.group)
        group.position = position
        group.generation = record.generation
        group.metadata = None if record.metadata is None else decode_metadata(record.metadata)
        group.offsets = {
            (topic, partition): Stored(decode_offset(value), log_offset)
            for topic, partition, log_offset, value in record.offsets
        }
        group.pending = {}
        for producer_id, topic, partition, log_offset, value in record.pending:
            group.pending.setdefault(producer_id, {})[topic, partition] = Stored(decode_offset(value), log_offset)
            self.by_producer.setdefault(producer_id, set()).add(group.id)


def _sorted(offsets: dict[Place, Stored]) -> list[tuple[Place, Stored]]:
    return sorted(offsets.items())
