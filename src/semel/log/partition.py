"""One partition: its segments, producers, open and aborted transactions, leader epochs, high watermark and LSO.

`check` decides and changes nothing; `apply` is the only mutator of what is durable, for a live record and a replayed
one alike; `durable` lets readers see. Invariants: high watermark and last stable offset never pass what the journal has
made durable; LSO <= high watermark, and LSO <= first offset of every transaction whose marker is not durable (a marker
counts when it is durable, not when it is applied). Readers see flushed bytes only, since durable implies flushed.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from semel.ports import Buffer, Disk
from semel.record.batch import (
    CONTROL,
    HEADER_BYTES,
    PREFIX_BYTES,
    TRANSACTIONAL,
    Batch,
    columns,
    headers_only,
    placed_parts,
)
from semel.record.control import parse_marker

from .aborted import AbortedRanges
from .producers import ACCEPT, NO_PRODUCER, NotInTransaction, Producer, Producers, Verdict
from .segment import Segment
from .snapshot import PartitionSnapshot, ProducerSnapshot, SegmentSnapshot, TransactionSnapshot

FOLDER: Final = "partitions"
SEGMENT_BYTES: Final = 1 << 30
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")


def folder_name(topic_id: str, index: int) -> str:
    return f"{topic_id}-{index}"


class _Place(NamedTuple):
    """A batch boundary."""

    segment: Segment | None  # None: before the first batch
    byte: int


@dataclass(slots=True)
class _Transaction:
    producer_id: int
    first_offset: int
    place: _Place
    ended: bool = False  # its marker is applied, but not yet durable


class _Pending(NamedTuple):
    """An applied batch that is not yet durable."""

    position: int
    next_offset: int
    place: _Place  # after it
    ends: int  # first offset of the transaction that it ends; -1


@dataclass(frozen=True, slots=True)
class Read:
    """What a fetch shows. `chunks` are whole batches; the first may start below the offset asked for."""

    chunks: list[bytes | memoryview]
    aborted: list[tuple[int, int]]  # producer id, first offset; empty for read_uncommitted
    high_watermark: int
    last_stable_offset: int
    start_offset: int
    next_offset: int  # after the last batch; the offset asked for when there is none

    @property
    def size(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


class Partition:
    """Offsets: `start_offset` <= `last_stable_offset` <= `high_watermark` <= `end_offset`."""

    def __init__(self, disk: Disk, topic_id: str, index: int, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._disk = disk
        self.topic_id = topic_id
        self.index = index
        self.segment_bytes = segment_bytes
        self.folder = f"{FOLDER}/{folder_name(topic_id, index)}"
        self.start_offset = 0
        self.end_offset = 0
        self.high_watermark = 0
        self.last_stable_offset = 0
        self.producers = Producers()
        self.aborted = AbortedRanges()
        self.epochs: list[tuple[int, int]] = []  # leader epoch, its first offset; both rise
        self._segments: list[Segment] = []
        self._bases: list[int] = []
        self._open: dict[int, _Transaction] = {}  # by producer id
        self._unstable: dict[int, _Transaction] = {}  # by first offset, ascending: open, or ended but not durable
        self._pending: deque[_Pending] = deque()
        self._watermark = _Place(None, 0)
        self._new_files = False

    # --- Deciding

    def check(self, batch: Batch) -> Verdict:
        """What is to be done with a producer's batch; changes nothing."""
        producer_id = batch.producer_id
        if producer_id == NO_PRODUCER:
            return ACCEPT
        verdict = self.producers.check(
            producer_id, batch.producer_epoch, batch.base_sequence, batch.last_sequence, batch.crc
        )
        if verdict is ACCEPT and not batch.attributes & TRANSACTIONAL and producer_id in self._open:
            return NotInTransaction(self._open[producer_id].first_offset)
        return verdict

    @property
    def open_transactions(self) -> dict[int, int]:
        """Producer id -> first offset of its open transaction here."""
        return {producer_id: transaction.first_offset for producer_id, transaction in self._open.items()}

    # --- Changing

    def apply(
        self,
        base_offset: int,
        data: Buffer,
        journal_position: int,
        *,
        leader_epoch: int | None = None,
        crc: int | None = None,
    ) -> None:
        """Appends one batch at `base_offset`, which is the end of the partition.

        The batch's own base offset and leader epoch are replaced where they differ (None: the epoch is kept). `crc`: of
        the batch as its producer sent it, where the broker has stamped it with another time since. The bytes
        are kept in memory until `flush`, at the latest `durable`, and must not change until then.
        """
        header = _HEADER.unpack_from(data)
        attributes, last_delta, max_timestamp, producer_id = header[5], header[6], header[8], header[9]
        assert base_offset == self.end_offset, (self.folder, base_offset, self.end_offset)
        size = len(data)
        assert size == header[1] + PREFIX_BYTES and size >= HEADER_BYTES, (self.folder, size, header)
        epoch = header[2] if leader_epoch is None else leader_epoch
        parts: tuple[Buffer, ...]
        if header[0] == base_offset and header[2] == epoch:
            parts = (data,)
        else:
            parts = placed_parts(data, base_offset, epoch)
        next_offset = base_offset + last_delta + 1
        marker = parse_marker(headers_only(data)) if attributes & CONTROL else None
        segment = self._segments[-1] if self._segments else None
        if segment is None or (segment.size and segment.size + size > self.segment_bytes):
            segment = self._roll(base_offset)
        byte = segment.size
        segment.append(parts, base_offset, next_offset, -1 if attributes & CONTROL else max_timestamp)
        self.end_offset = next_offset
        if not self.epochs or epoch > self.epochs[-1][0]:
            self.epochs.append((epoch, base_offset))
        ends = -1
        if marker is not None:
            ends = self._mark(base_offset, producer_id, header[10], marker.commit, marker.coordinator_epoch)
        elif producer_id != NO_PRODUCER and not attributes & CONTROL:
            first = header[11]
            self.producers.appended(
                producer_id,
                header[10],
                first,
                (first + last_delta) & 0x7FFFFFFF if first >= 0 else -1,
                base_offset,
                header[4] if crc is None else crc,
                max_timestamp,
            )
            if attributes & TRANSACTIONAL and producer_id not in self._open:
                transaction = _Transaction(producer_id, base_offset, _Place(segment, byte))
                self._open[producer_id] = self._unstable[base_offset] = transaction
        self._pending.append(_Pending(journal_position, next_offset, _Place(segment, segment.size), ends))

    def _mark(self, offset: int, producer_id: int, epoch: int, commit: bool, coordinator_epoch: int) -> int:
        self.producers.marked(producer_id, epoch, coordinator_epoch)
        transaction = self._open.pop(producer_id, None)
        if transaction is None:
            return -1
        transaction.ended = True
        if not commit:
            stable = min((other.first_offset for other in self._open.values()), default=offset + 1)
            self.aborted.add(producer_id, transaction.first_offset, offset, stable)
        return transaction.first_offset

    def _roll(self, base_offset: int) -> Segment:
        if self._segments:
            self._segments[-1].flush()
        else:
            self._remove_strays()
        segment = Segment.create(self._disk, f"{self.folder}/{base_offset:020d}", base_offset)
        self._new_files = True
        self._segments.append(segment)
        self._bases.append(base_offset)
        return segment

    def flush(self) -> None:
        """Hands what was applied to the system, in one write. Do it before the journal is written: then a disk that is
        full refuses before the journal has it, and recovery needs no space for segments that was not there before."""
        if self._segments:
            self._segments[-1].flush()

    def durable(self, journal_position: int) -> bool:
        """The journal is durable up to here: high watermark and LSO advance. True when either moved."""
        pending = self._pending
        if not pending or pending[0].position > journal_position:
            return False
        self.flush()
        last = pending[0]
        while pending and pending[0].position <= journal_position:
            last = pending.popleft()
            if last.ends >= 0:
                del self._unstable[last.ends]
        self.high_watermark = last.next_offset
        self._watermark = last.place
        self._advance_stable()
        return True

    def _advance_stable(self) -> None:
        first = next(iter(self._unstable), self.high_watermark)
        self.last_stable_offset = min(first, self.high_watermark)

    def truncate_before(self, offset: int) -> None:
        """Moves the start up to `offset` (DeleteRecords). The files go with the next checkpoint's `sweep`."""
        if offset > self.start_offset:
            self.start_offset = min(offset, self.end_offset)
            self.aborted.truncate_before(self.start_offset)

    # --- Reading

    def read(self, offset: int, max_bytes: int, *, committed: bool, min_one: bool = True) -> Read:
        """Batches from the one that holds `offset` up to the LSO (`committed`) or the high watermark.

        The bytes come from one segment, so a read can end early; it is never empty below the limit unless `max_bytes`
        is too small and `min_one` false. The caller has checked start_offset <= offset <= end_offset. Where the headers
        are damaged it ends before that batch, and CorruptSegment when that is the first.
        """
        limit, place = self.high_watermark, self._watermark
        if committed and self.last_stable_offset < limit:
            limit = self.last_stable_offset
            place = self._unstable[next(iter(self._unstable))].place
        segments = self._segments
        if offset >= limit or not segments:
            return self._nothing(offset)
        at = max(0, bisect_right(self._bases, offset) - 1)
        segment = segments[at]
        if segment is place.segment:
            end, end_offset = place.byte, limit
        else:
            end, end_offset = segment.size, segment.end_offset
        byte = segment.find(offset)
        if byte >= end:
            return self._nothing(offset)
        chunk = segment.read(offset, byte, end, end_offset, max_bytes, min_one)
        if not chunk.data:
            return self._nothing(offset)
        aborted: list[tuple[int, int]] = []
        if committed and self.aborted.markers:
            aborted = self.aborted.within(offset, chunk.next_offset)
        return Read(
            [chunk.data], aborted, self.high_watermark, self.last_stable_offset, self.start_offset, chunk.next_offset
        )

    def _nothing(self, offset: int) -> Read:
        return Read([], [], self.high_watermark, self.last_stable_offset, self.start_offset, offset)

    def offset_for_time(self, timestamp: int, *, committed: bool = False) -> tuple[int, int] | None:
        """Offset and timestamp of the first visible record at or past `timestamp`; None when there is none."""
        limit = self.last_stable_offset if committed else self.high_watermark
        for segment in self._segments:
            if segment.max_timestamp < timestamp or segment.end_offset <= self.start_offset:
                continue
            for step in segment.first_at(timestamp):
                if step.base_offset >= limit:
                    return None
                if step.next_offset <= self.start_offset:
                    continue
                batch = headers_only(segment.file.read(step.byte, step.end - step.byte), where=segment.path)
                if batch.is_control:
                    continue
                found = columns(batch)
                for at, time in zip(found.offsets, found.timestamps, strict=True):
                    if time >= timestamp and at >= self.start_offset:
                        return at, time
        return None

    @property
    def max_timestamp(self) -> int:
        """The largest timestamp of any record that is no marker; -1 when there is none."""
        return max((segment.max_timestamp for segment in self._segments), default=-1)

    def epoch_end(self, epoch: int) -> tuple[int, int]:
        """(largest leader epoch not above `epoch`, offset where it ends), as OffsetForLeaderEpoch answers it; (-1, -1)
        for an epoch that is newer than any batch."""
        if not self.epochs or epoch < 0 or epoch > self.epochs[-1][0]:
            return -1, -1
        if epoch == self.epochs[-1][0]:
            return epoch, self.end_offset
        at = bisect_right(self.epochs, epoch, key=lambda row: row[0])
        return (self.epochs[at - 1][0] if at else epoch), self.epochs[at][1]

    def epoch_at(self, offset: int) -> int:
        """The leader epoch of the batch that holds `offset`; -1 when none is known."""
        at = bisect_right(self.epochs, offset, key=lambda row: row[1])
        return self.epochs[at - 1][0] if at else -1

    # --- Checkpoint

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    def sync(self) -> None:
        """Flushes and syncs what the segments hold: before a checkpoint."""
        self.flush()
        for segment in self._segments:
            segment.sync()
        if self._new_files:
            self._disk.sync_folder(self.folder)
            self._disk.sync_folder(FOLDER)
            self._disk.sync_folder("")
            self._new_files = False

    def sync_ahead(self) -> None:
        """Syncs what is flushed. For one other thread, beside all else but `sync`, to which it leaves little: of two
        concurrent fsyncs of one file only one is told that a write-back failed."""
        for segment in tuple(self._segments):
            segment.sync_ahead()

    def checkpoint(self) -> PartitionSnapshot:
        """The partition without its bytes. `sync` must have covered everything applied, and whoever keeps the snapshot
        must have made the journal durable first."""
        for segment in self._segments:
            assert segment.synced == segment.size, (segment.path, segment.synced, segment.size)
            segment.save_index()
        return PartitionSnapshot(
            topic_id=self.topic_id,
            index=self.index,
            start_offset=self.start_offset,
            end_offset=self.end_offset,
            segments=[
                SegmentSnapshot(segment.base_offset, segment.size, segment.max_timestamp)
                for segment in self._segments
                if segment.end_offset > self.start_offset or segment is self._segments[-1]
            ],
            producers=[
                ProducerSnapshot(producer_id, producer.epoch, producer.coordinator_epoch, list(producer.window))
                for producer_id, producer in self.producers.by_id.items()
            ],
            transactions=[
                TransactionSnapshot(
                    transaction.producer_id,
                    transaction.first_offset,
                    transaction.place.segment.base_offset if transaction.place.segment else -1,
                    transaction.place.byte,
                )
                for transaction in self._unstable.values()
                if not transaction.ended
            ],
            epochs=list(self.epochs),
            aborted=self.aborted.to_bytes(),
        )

    @staticmethod
    def restore(disk: Disk, snapshot: PartitionSnapshot, *, segment_bytes: int = SEGMENT_BYTES) -> Partition:
        """The partition as the checkpoint recorded it; all of it is durable. CorruptSegment when bytes are missing."""
        partition = Partition(disk, snapshot.topic_id, snapshot.index, segment_bytes=segment_bytes)
        partition.start_offset = snapshot.start_offset
        partition.end_offset = snapshot.end_offset
        for at, row in enumerate(snapshot.segments):
            last = at + 1 == len(snapshot.segments)
            end_offset = snapshot.end_offset if last else snapshot.segments[at + 1].base_offset
            path = f"{partition.folder}/{row.base_offset:020d}"
            segment = Segment.restore(disk, path, row.base_offset, end_offset, row.size, row.max_timestamp)
            partition._segments.append(segment)
            partition._bases.append(row.base_offset)
        partition._remove_strays()
        for found in snapshot.producers:
            producer = Producer(found.epoch, found.coordinator_epoch)
            producer.window.extend(found.window)
            partition.producers.by_id[found.producer_id] = producer
        by_base = {segment.base_offset: segment for segment in partition._segments}
        for open_ in snapshot.transactions:
            place = _Place(by_base.get(open_.segment), open_.byte)
            transaction = _Transaction(open_.producer_id, open_.first_offset, place)
            partition._open[open_.producer_id] = partition._unstable[open_.first_offset] = transaction
        partition.epochs = [(epoch, offset) for epoch, offset in snapshot.epochs]
        partition.aborted = AbortedRanges.from_bytes(snapshot.aborted)
        partition.high_watermark = snapshot.end_offset
        if partition._segments:
            partition._watermark = _Place(partition._segments[-1], partition._segments[-1].size)
        partition._advance_stable()
        return partition

    def _remove_strays(self) -> None:
        """Files that no segment owns: of a life after the checkpoint, which the journal will bring back, or of a
        sweep that a crash undid. On a full disk the replay needs their space."""
        own = {f"{base:020d}" for base in self._bases}
        for name in self._disk.list(self.folder):
            if name.partition(".")[0] not in own:
                self._disk.remove(f"{self.folder}/{name}")

    def sweep(self) -> None:
        """After a checkpoint is durable: removes the segments that it left out (below the start)."""
        while len(self._segments) > 1 and self._segments[0].end_offset <= self.start_offset:
            self._segments[0].remove()
            del self._segments[0]
            del self._bases[0]

    def close(self) -> None:
        for segment in self._segments:
            segment.close()
