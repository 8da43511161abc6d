"""A broker reduced to what the log sees: appends, transactions over two partitions, checkpoints, recovery."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from semel import record
from semel.log import Accept, Folder, Journal, Partition, PartitionSnapshot
from semel.ports import Disk

Meta = tuple[str, int, int]  # "append" or "state", partition, base offset
SEGMENT_BYTES = 2000
RESERVE_BYTES = 20_000  # small disks, small reserve


@dataclass(frozen=True)
class Appended:
    partition: int
    data: bytes
    position: int


class MiniBroker:
    """Applies as it appends; `flush` is one group commit."""

    def __init__(self, disk: Disk, partitions: int = 2) -> None:
        self.folder = Folder.open(disk, reserve_bytes=RESERVE_BYTES)
        self.journal = Journal.open(self.folder.disk)
        self.partitions = [
            Partition(self.folder.disk, "topic", index, segment_bytes=SEGMENT_BYTES) for index in range(partitions)
        ]
        self.replayed: list[tuple[bytes, bytes]] = []
        for entry in self.journal.replay():
            self.replayed.append((entry.meta, bytes(entry.payload)))
            self.apply(entry.meta, entry.payload, entry.position)
        self.durable()
        self.folder.recovered()

    def apply(self, meta: bytes, payload: Any, position: int) -> None:
        kind, index, rest = msgspec.msgpack.decode(meta)
        if kind == "append":
            self.partitions[index].apply(rest, payload, position)
        else:
            snapshot = msgspec.convert(rest, PartitionSnapshot)
            self.partitions[index] = Partition.restore(self.folder.disk, snapshot, segment_bytes=SEGMENT_BYTES)

    def append(self, index: int, data: bytes) -> Appended:
        base_offset = self.partitions[index].end_offset
        data = record.placed(data, base_offset, 1)
        meta = msgspec.msgpack.encode(("append", index, base_offset))
        position = self.journal.append(meta, data)
        self.apply(meta, data, position)
        return Appended(index, data, position)

    def produce(self, index: int, data: bytes) -> Appended | None:
        """Appends what `check` accepts."""
        if not isinstance(self.partitions[index].check(record.parse(data)), Accept):
            return None
        return self.append(index, data)

    def end(self, producer_id: int, epoch: int, commit: bool) -> list[Appended]:
        return [
            self.append(index, record.marker(commit, producer_id, epoch, 0, 5))
            for index, partition in enumerate(self.partitions)
            if producer_id in partition.open_transactions
        ]

    def write(self) -> None:
        for partition in self.partitions:
            partition.flush()
        self.journal.write()

    def flush(self) -> int:
        self.write()
        synced = self.journal.sync()
        self.durable()
        return synced

    def durable(self) -> None:
        for partition in self.partitions:
            partition.durable(self.journal.synced)

    def checkpoint(self) -> None:
        for partition in self.partitions:
            partition.sync()
        self.journal.checkpoint(
            (msgspec.msgpack.encode(("state", index, partition.checkpoint())), b"")
            for index, partition in enumerate(self.partitions)
        )
        self.journal.drop_before(self.journal.checkpoint_position)
        self.durable()
        for partition in self.partitions:
            partition.sweep()
        self.folder.sweep((partition.topic_id, partition.index) for partition in self.partitions)


def state(partition: Partition) -> dict[str, Any]:
    """Everything durable about a partition, for comparing two of them."""
    return {
        "start": partition.start_offset,
        "end": partition.end_offset,
        "high watermark": partition.high_watermark,
        "stable": partition.last_stable_offset,
        "producers": {
            producer_id: (producer.epoch, producer.coordinator_epoch, list(producer.window))
            for producer_id, producer in partition.producers.by_id.items()
        },
        "open": partition.open_transactions,
        "aborted": partition.aborted.within(0, 1 << 60),
        "epochs": partition.epochs,
        "bytes": content(partition),
    }


def content(partition: Partition, *, committed: bool = False) -> bytes:
    """All batches that a reader sees."""
    parts: list[bytes] = []
    offset = partition.start_offset
    while (read := partition.read(offset, 1500, committed=committed)).chunks:
        assert read.next_offset > offset
        parts += [bytes(chunk) for chunk in read.chunks]
        offset = read.next_offset
    return b"".join(parts)


def values(partition: Partition, *, committed: bool = True) -> list[bytes]:
    """What a consumer would deliver: committed records only, or all of them."""
    found: list[bytes] = []
    offset = partition.start_offset
    aborted_now: set[int] = set()
    while (read := partition.read(offset, 700, committed=committed)).chunks:
        starts = sorted(read.aborted, key=lambda row: row[1])
        for batch in record.parse_all(b"".join(bytes(chunk) for chunk in read.chunks)):
            while starts and starts[0][1] <= batch.last_offset:
                aborted_now.add(starts.pop(0)[0])
            if batch.is_control:
                aborted_now.discard(batch.producer_id)
            elif not (committed and batch.is_transactional and batch.producer_id in aborted_now):
                found += [value or b"" for value in record.columns(batch).values]
        offset = read.next_offset
    return found


class Load:
    """Random producers over a MiniBroker: plain, idempotent and transactional, with retries; one seed, one load."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.sequences: dict[tuple[int, int], int] = {}
        self.last: dict[tuple[int, int], bytes] = {}

    def step(self, broker: MiniBroker) -> None:
        dice = self.dice
        choice = dice.randrange(10)
        index = dice.randrange(len(broker.partitions))
        if choice < 6:
            producer = dice.choice([-1, 1, 2, 3])
            broker.produce(index, self.batch(broker, index, producer))
        elif choice == 6 and self.last:
            (at, producer), data = dice.choice(sorted(self.last.items()))
            assert broker.produce(at, data) is None, "a retry is not a write"
        elif choice == 7:
            broker.end(dice.choice([2, 3]), 0, dice.random() < 0.5)
        else:
            broker.flush()

    def batch(self, broker: MiniBroker, index: int, producer: int) -> bytes:
        dice = self.dice
        count = dice.randrange(1, 4)
        sequence = -1
        if producer >= 0:
            window = broker.partitions[index].producers.by_id.get(producer)
            sequence = window.window[-1].last_sequence + 1 if window and window.window else 0
        data = record.encode(
            [bytes([65 + dice.randrange(26)]) * dice.randrange(1, 120) for _ in range(count)],
            timestamps=dice.randrange(1000, 2000),
            producer_id=producer,
            producer_epoch=0 if producer >= 0 else -1,
            base_sequence=sequence,
            transactional=producer in (2, 3),
        )
        if producer >= 0:
            self.last[index, producer] = data
        return data
