"""Everything durable that the broker knows, and `apply`, the only thing that changes it.

Recovery is `for record in journal: state.apply(record)`. Invariant: the state is a function of the records applied;
nothing volatile (connections, waits, members' sessions, clocks) is kept or read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from semel.broker import records
from semel.broker.group_state import Groups
from semel.broker.records import PartitionKey, Record, Transaction, TxnState
from semel.log.partition import Partition
from semel.ports import Buffer, Disk

OFFSETS_TOPIC: Final = "__consumer_offsets"
RUNS_TOPIC: Final = "__semel_runs"
INTERNAL: Final = frozenset({OFFSETS_TOPIC, RUNS_TOPIC})

OPEN_STATES: Final = frozenset({TxnState.ONGOING, TxnState.PREPARE_COMMIT, TxnState.PREPARE_ABORT})


@dataclass(slots=True)
class Topic:
    number: int
    name: str
    id: UUID
    partitions: list[Partition]
    config: dict[str, str]
    position: int  # in the journal, of its last change

    @property
    def internal(self) -> bool:
        return self.name in INTERNAL

    def partition(self, index: int) -> Partition | None:
        return self.partitions[index] if 0 <= index < len(self.partitions) else None


class State:
    def __init__(self, disk: Disk, offsets_partitions: int, segment_bytes: int) -> None:
        self.disk = disk
        self.segment_bytes = segment_bytes
        self.run = 0
        self.run_id = ""
        self.cluster_id = ""
        self.topics: dict[str, Topic] = {}
        self.topics_by_id: dict[UUID, Topic] = {}
        self.topics_by_number: dict[int, Topic] = {}
        self.next_topic = 1
        self.next_producer_id = 0
        self.broker_config: dict[str, str] = {}
        self.transactions: dict[str, Transaction] = {}
        self.by_producer: dict[int, str] = {}  # producer id -> transactional id, current ids only
        self.open: set[str] = set()  # transactional ids with an open (or prepared) transaction
        self.groups = Groups(offsets_partitions)
        self.offsets_topic = 0  # number of __consumer_offsets
        self.position = 0  # journal position after the last record applied
        self.dirty: dict[PartitionKey, Partition] = {}  # have batches that are not yet known to be durable
        self._apply: dict[type, Callable[[Any, Buffer, int], None]] = {
            records.Append: self._append,
            records.Transaction: self._transaction,
            records.Run: self._run,
            records.TopicCreated: self._topic_created,
            records.TopicDeleted: self._topic_deleted,
            records.BrokerConfig: self._broker_config,
            records.StartOffset: self._start_offset,
            records.PartitionState: self._partition_state,
            records.ProducerIds: self._producer_ids,
            records.TopicNumbers: self._topic_numbers,
            records.GroupGeneration: self._group_generation,
            records.GroupState: self._group_state,
        }

    def apply(self, record: Record, payload: Buffer, position: int) -> None:
        """Makes the record true. `position`: the journal's after it."""
        self._apply[type(record)](record, payload, position)
        self.position = position

    # --- Asking

    def find(self, name: str, index: int) -> Partition | None:
        topic = self.topics.get(name)
        return None if topic is None else topic.partition(index)

    def partition(self, key: PartitionKey) -> Partition | None:
        topic = self.topics_by_number.get(key[0])
        return None if topic is None else topic.partition(key[1])

    def partitions(self) -> Iterator[tuple[PartitionKey, Partition]]:
        for topic in self.topics.values():
            for index, partition in enumerate(topic.partitions):
                yield (topic.number, index), partition

    # --- Durability, which is known from outside the records

    def durable(self, position: int) -> list[PartitionKey]:
        """Advances high watermarks and last stable offsets; returns the partitions where one moved."""
        moved = []
        for key, partition in list(self.dirty.items()):
            if partition.durable(position):
                moved.append(key)
            if partition.high_watermark == partition.end_offset:
                del self.dirty[key]
        return moved

    # --- Checkpoints

    def checkpoint(self) -> Iterator[tuple[Record, Buffer]]:
        """Records that make this state out of nothing, once the segments are synced."""
        yield records.Run(self.run, self.run_id, self.cluster_id, 0), b""
        yield records.ProducerIds(self.next_producer_id), b""
        if self.broker_config:
            yield records.BrokerConfig(self.broker_config), b""
        # The numbers of deleted topics are not given out again.
        yield records.TopicNumbers(self.next_topic), b""
        for topic in self.topics.values():
            yield created(topic.number, topic.name, topic.id, len(topic.partitions), topic.config), b""
        for (number, index), partition in self.partitions():
            yield records.PartitionState(number, index, partition.checkpoint()), b""
        for _, transaction in sorted(self.transactions.items()):
            yield transaction, b""
        for group in self.groups.checkpoint():
            yield group, b""

    # --- Applying, one record each

    def _append(self, record: records.Append, payload: Buffer, position: int) -> None:
        partition = self.topics_by_number[record.topic].partitions[record.partition]
        partition.apply(record.base_offset, payload, position)
        self.dirty[record.topic, record.partition] = partition
        if record.topic == self.offsets_topic:
            self.groups.apply_batch(record.partition, payload, position)

    def _transaction(self, record: Transaction, payload: Buffer, position: int) -> None:
        before = self.transactions.get(record.id)
        if before is not None:
            allowed = records.TRANSITIONS[before.state]
            assert record.state in allowed, f"{record.id}: {before.state.name} may not become {record.state.name}"
            if before.producer_id != record.producer_id:
                # What still comes under the old id is of a producer that is gone (epoch exhaustion).
                self.by_producer.pop(before.producer_id, None)
        self.transactions[record.id] = record
        self.by_producer[record.producer_id] = record.id
        if record.state in OPEN_STATES:
            self.open.add(record.id)
        else:
            self.open.discard(record.id)

    def _run(self, record: records.Run, payload: Buffer, position: int) -> None:
        self.run = record.number
        self.run_id = record.id
        self.cluster_id = record.cluster_id

    def _topic_created(self, record: records.TopicCreated, payload: Buffer, position: int) -> None:
        topic = self.topics_by_number.get(record.number)
        if topic is None:
            topic = Topic(record.number, record.name, UUID(bytes=record.id), [], {}, position)
            self.topics[topic.name] = topic
            self.topics_by_id[topic.id] = topic
            self.topics_by_number[topic.number] = topic
            self.next_topic = max(self.next_topic, topic.number + 1)
            if topic.name == OFFSETS_TOPIC:
                self.offsets_topic = topic.number
        topic.config = record.config
        topic.position = position
        for index in range(len(topic.partitions), record.partitions):
            topic.partitions.append(Partition(self.disk, topic.id.hex, index, segment_bytes=self.segment_bytes))

    def _topic_deleted(self, record: records.TopicDeleted, payload: Buffer, position: int) -> None:
        # Its files stay until a checkpoint no longer knows them: this record may still be lost in a crash.
        topic = self.topics_by_number.pop(record.number)
        del self.topics[topic.name], self.topics_by_id[topic.id]
        for index in range(len(topic.partitions)):
            self.dirty.pop((topic.number, index), None)

    def _broker_config(self, record: records.BrokerConfig, payload: Buffer, position: int) -> None:
        self.broker_config = record.config

    def _start_offset(self, record: records.StartOffset, payload: Buffer, position: int) -> None:
        self.topics_by_number[record.topic].partitions[record.partition].truncate_before(record.offset)

    def _partition_state(self, record: records.PartitionState, payload: Buffer, position: int) -> None:
        restored = Partition.restore(self.disk, record.snapshot, segment_bytes=self.segment_bytes)
        self.topics_by_number[record.topic].partitions[record.partition] = restored

    def _producer_ids(self, record: records.ProducerIds, payload: Buffer, position: int) -> None:
        self.next_producer_id = record.next

    def _topic_numbers(self, record: records.TopicNumbers, payload: Buffer, position: int) -> None:
        self.next_topic = record.next

    def _group_generation(self, record: records.GroupGeneration, payload: Buffer, position: int) -> None:
        self.groups.generation_given(record.group, record.generation, position)

    def _group_state(self, record: records.GroupState, payload: Buffer, position: int) -> None:
        self.groups.restore(record, position)


def created(number: int, name: str, topic_id: UUID, partitions: int, config: dict[str, str]) -> records.TopicCreated:
    return records.TopicCreated(number, name, topic_id.bytes, partitions, config)
