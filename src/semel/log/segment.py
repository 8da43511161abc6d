"""The bytes of one run of offsets of a partition, and a sparse index into them.

A segment is a projection of the journal: it is written to the page cache when a record is applied and synced only at a
checkpoint; recovery cuts it back to what the checkpoint recorded and applies the journal again. Invariant: the file
holds whole batches in offset order, nothing else. The index is a hint: a row that does not lead to its batch is dropped
and the index built again from the batches.
"""

from __future__ import annotations

import contextlib
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from semel.ports import Buffer, Disk, File
from semel.record.batch import CONTROL

from .errors import CorruptSegment

FLUSH_BYTES: Final = 256 << 10
INDEX_BYTES: Final = 32 << 10  # a row of the index per so many bytes
_WALK_BYTES: Final = 64 << 10
_SCAN_BYTES: Final = 1 << 20
# Of a batch's header: base offset, length, last offset delta; the same with magic, attributes and largest timestamp.
_STEP: Final = struct.Struct(">qi11xi")
_STEP_TIME: Final = struct.Struct(">qi4xb4xhi8xq")
_PREFIX: Final = 12
_ROW: Final = struct.Struct("<qqq")
_POSITIONS_MAX: Final = 64  # readers whose place is remembered


class Step(NamedTuple):
    """Where one batch lies."""

    byte: int
    end: int
    base_offset: int
    next_offset: int
    max_timestamp: int  # -1 for a control batch: no reader asks for its time


class Chunk(NamedTuple):
    """Whole batches, and the offset after them."""

    data: bytes | memoryview
    next_offset: int


class Segment:
    """`size` bytes from `base_offset` to `end_offset`."""

    __slots__ = (
        "_disk",
        "_file",
        "_indexed",
        "_parts",
        "_places",
        "_saved",
        "_sync_failed",
        "_synced",
        "_synced_ahead",
        "base_offset",
        "end_offset",
        "flushed",
        "max_timestamp",
        "offsets",
        "path",
        "positions",
        "size",
        "times",
    )

    def __init__(self, disk: Disk, path: str, base_offset: int) -> None:
        self._disk = disk
        self._file: File | None = None
        self.path = path  # without suffix
        self.base_offset = base_offset
        self.end_offset = base_offset
        self.size = 0
        self.flushed = 0  # of `size`, what lies in the file
        self._synced = 0
        self._synced_ahead = 0
        self._parts: list[Buffer] = []  # the rest
        self._sync_failed = False
        self.max_timestamp = -1
        # Rows: first offset of a batch, its byte, largest timestamp of the segment before it.
        self.offsets = array("q")
        self.positions = array("q")
        self.times = array("q")
        self._indexed = 0  # bytes that the index has seen
        self._saved = 0  # rows that lie in the index file
        self._places: dict[int, int] = {}  # offset -> byte, where readers go on

    @staticmethod
    def create(disk: Disk, path: str, base_offset: int) -> Segment:
        """A new segment; its partition has removed what a former life left under its name."""
        segment = Segment(disk, path, base_offset)
        assert segment.file.size() == 0, (path, segment.file.size())
        return segment

    @staticmethod
    def restore(disk: Disk, path: str, base_offset: int, end_offset: int, size: int, max_timestamp: int) -> Segment:
        """As a checkpoint recorded it: what was appended later is cut off, the journal will append it again."""
        segment = Segment(disk, path, base_offset)
        found = segment.file.size()
        if found < size:
            raise CorruptSegment(
                f"{path}.log holds {found} bytes, {size} had been synced: {size - found} are lost. Restore the folder "
                f"from a backup."
            )
        if found > size:
            segment.file.truncate(size)
        segment.size = segment.flushed = segment._synced = size
        segment.end_offset = end_offset
        segment.max_timestamp = max_timestamp
        segment._load_index()
        segment.close()  # opened again when somebody reads or appends: most never are
        return segment

    @property
    def file(self) -> File:
        if self._file is None:
            self._file = self._disk.open(self.path + ".log")
        return self._file

    # --- Appending

    def append(self, parts: Sequence[Buffer], base_offset: int, next_offset: int, max_timestamp: int) -> None:
        """One batch, kept in memory until `flush`, but never more than FLUSH_BYTES of them."""
        at = size = self.size
        for part in parts:
            size += len(part)
        if size - self.flushed >= FLUSH_BYTES:
            self._parts += parts
            self.flush()
        else:
            # A view would keep alive all that it is a view of: a request, a megabyte of the journal.
            self._parts += [bytes(part) if isinstance(part, memoryview) else part for part in parts]
        if self._indexed == at:
            if at - (self.positions[-1] if self.positions else 0) >= INDEX_BYTES:
                self.offsets.append(base_offset)
                self.positions.append(at)
                self.times.append(self.max_timestamp)
            self._indexed = size
        self.size = size
        self.end_offset = next_offset
        if max_timestamp > self.max_timestamp:
            self.max_timestamp = max_timestamp

    def flush(self) -> None:
        """Hands what was appended to the system, in one write: a page of 4 KB costs several times one of many."""
        if self._parts:
            self.flushed = self.file.append(self._parts)
            self._parts = []

    @property
    def synced(self) -> int:
        return max(self._synced, self._synced_ahead)

    def sync(self) -> None:
        """Covers what was flushed before the call."""
        size = self.flushed
        if size > self.synced:
            self._sync()
            self._synced = size

    def sync_ahead(self) -> None:
        """The same, for one other thread, beside all else but `sync`: of two concurrent fsyncs only one is told that a
        write-back failed. Each thread keeps its own figure, so that neither is set back by the other."""
        size = self.flushed
        if size > self.synced:
            self._sync()
            self._synced_ahead = size

    def _sync(self) -> None:
        if self._sync_failed:
            raise CorruptSegment(
                f"{self.path}.log: an earlier sync failed, so nobody knows what the disk holds. Start again: recovery "
                f"writes it anew."
            )
        try:
            self.file.sync()
        except BaseException:
            self._sync_failed = True
            raise

    def save_index(self) -> None:
        """Writes the new rows of the index beside the segment, unsynced: it is only a hint, and a disk that refuses
        it costs the next start a walk, no more."""
        rows = len(self.offsets)
        if rows <= self._saved:
            return
        with contextlib.suppress(OSError):
            data = b"".join(
                _ROW.pack(self.offsets[row], self.positions[row], self.times[row]) for row in range(self._saved, rows)
            )
            file = self._disk.open(self.path + ".index")
            if file.size() != self._saved * _ROW.size:
                file.truncate(min(file.size(), self._saved * _ROW.size))
            if file.size() == self._saved * _ROW.size:
                file.append([data])
                self._saved = rows
            file.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self._file = None  # a thread may be syncing it: its last user closes it
        for suffix in (".log", ".index"):
            if self._disk.exists(self.path + suffix):
                self._disk.remove(self.path + suffix)

    # --- Reading, of what is flushed

    def find(self, offset: int) -> int:
        """The byte of the batch that holds `offset`, or of the first one after it."""
        if offset <= self.base_offset:
            return 0
        place = self._places.get(offset)
        if place is not None:
            return place
        for step in self.steps(self._start(offset)):
            if step.next_offset > offset:
                return step.byte
        return self.flushed

    def read(self, offset: int, byte: int, end: int, end_offset: int, max_bytes: int, min_one: bool) -> Chunk:
        """Whole batches from `byte` on, the first of which holds `offset`: at most `max_bytes` of them (one larger than
        that alone, if `min_one`) and none past `end`, the boundary before `end_offset`. CorruptSegment where the
        headers say otherwise; the records are not looked at, their checksum is the reader's to compare."""
        chunk = self._chunk(byte, end, end_offset, max_bytes, min_one)
        return self._checked(chunk, byte, offset) if chunk.data else chunk

    def _checked(self, chunk: Chunk, byte: int, offset: int) -> Chunk:
        """The chunk up to the first header that does not follow the one before. The base offset is not under the
        batch's checksum: without this a reader would take another offset for granted."""
        data, at, last = chunk.data, 0, len(chunk.data)
        expected = offset
        while at < last:
            if last - at < _STEP.size:
                break
            base_offset, length, last_delta = _STEP.unpack_from(data, at)
            after = at + _PREFIX + length
            following = base_offset + last_delta + 1
            first = at == 0 and base_offset < expected < following
            if after > last or last_delta < 0 or length < _STEP.size or not (first or base_offset == expected):
                break
            at, expected = after, following
        else:
            if expected == chunk.next_offset:
                return chunk
            at = 0  # one header lies, and nobody knows which
        self._places.clear()  # what was remembered of where this ends may lie, too
        if at == 0:
            raise self._damaged(byte, f"the batch that should hold offset {offset} does not")
        return Chunk(memoryview(data)[:at], expected)

    def _chunk(self, byte: int, end: int, end_offset: int, max_bytes: int, min_one: bool) -> Chunk:
        if end - byte <= max_bytes:
            self._remember(end_offset, end)
            return Chunk(self.file.read(byte, end - byte), end_offset)
        data = self.file.read(byte, max_bytes) if max_bytes > 0 else b""
        cut = 0
        next_offset = -1
        # Walk to the last boundary; the index spares most of the way.
        row = bisect_right(self.positions, byte + max_bytes) - 1 if self._indexed >= self.flushed else -1
        if row >= 0 and self.positions[row] > byte:
            cut = self.positions[row] - byte
            next_offset = self.offsets[row]
        available = len(data)
        while cut + _STEP.size <= available:
            base_offset, length, last_delta = _STEP.unpack_from(data, cut)
            after = cut + _PREFIX + length
            if after > available:
                break
            cut = after
            next_offset = base_offset + last_delta + 1
        if cut == 0:
            if not min_one:
                return Chunk(b"", -1)
            first = next(self.steps(byte))
            self._remember(first.next_offset, first.end)
            return Chunk(self.file.read(byte, first.end - byte), first.next_offset)
        self._remember(next_offset, byte + cut)
        return Chunk(data if cut == available else memoryview(data)[:cut], next_offset)

    def steps(self, byte: int) -> Iterator[Step]:
        """The batches from `byte` on, without their records."""
        size = self.flushed
        data = b""
        base = byte
        while byte < size:
            at = byte - base
            if at + _STEP_TIME.size > len(data):
                data, base, at = self.file.read(byte, _WALK_BYTES), byte, 0
                if len(data) < _STEP_TIME.size:
                    raise self._damaged(byte, f"{len(data)} bytes are left")
            base_offset, length, magic, attributes, last_delta, max_timestamp = _STEP_TIME.unpack_from(data, at)
            end = byte + _PREFIX + length
            if magic != 2 or length < _STEP_TIME.size or end > size or last_delta < 0:
                raise self._damaged(byte, "no batch starts here")
            if attributes & CONTROL:
                max_timestamp = -1
            yield Step(byte, end, base_offset, base_offset + last_delta + 1, max_timestamp)
            byte = end

    def first_at(self, timestamp: int) -> Iterator[Step]:
        """Batches from the first on whose largest timestamp is at or past `timestamp`."""
        self._ensure_index()
        row = bisect_left(self.times, timestamp) - 1
        for step in self.steps(self.positions[row] if row >= 0 else 0):
            if step.max_timestamp >= timestamp:
                yield step

    # --- Index

    def _start(self, offset: int) -> int:
        """A byte at or before the batch that holds `offset`."""
        self._ensure_index()
        row = bisect_right(self.offsets, offset) - 1
        if row < 0:
            return 0
        byte = self.positions[row]
        head = self.file.read(byte, 8)
        if len(head) == 8 and int.from_bytes(head, "big", signed=True) == self.offsets[row]:
            return byte
        # The hint was wrong: an index file of a disk that lost what was not synced.
        self._forget_index(0)
        self._ensure_index()
        return self.positions[row] if (row := bisect_right(self.offsets, offset) - 1) >= 0 else 0

    def _ensure_index(self) -> None:
        if self._indexed >= self.flushed:
            return
        start = self.positions[-1] if self.positions else 0
        largest = self.times[-1] if self.times else -1
        for step in self.steps(start):
            if step.byte - (self.positions[-1] if self.positions else 0) >= INDEX_BYTES:
                self.offsets.append(step.base_offset)
                self.positions.append(step.byte)
                self.times.append(largest)
            largest = max(largest, step.max_timestamp)
        self._indexed = self.flushed

    def _load_index(self) -> None:
        """Takes the rows of the index file that can be right; the rest is walked when first asked for."""
        path = self.path + ".index"
        if not self._disk.exists(path):
            return
        file = self._disk.open(path)
        data = file.read(0, file.size())
        last_offset, last_byte, last_time = self.base_offset, 0, -1
        for offset, byte, time in _ROW.iter_unpack(data[: len(data) // _ROW.size * _ROW.size]):
            if not (last_offset < offset < self.end_offset and last_byte < byte < self.size and time >= last_time):
                break
            self.offsets.append(offset)
            self.positions.append(byte)
            self.times.append(time)
            last_offset, last_byte, last_time = offset, byte, time
        self._saved = len(self.offsets)
        if file.size() != self._saved * _ROW.size:
            # Rows of bytes that were cut off must not come back to life when others take their place.
            file.truncate(self._saved * _ROW.size)
        file.close()

    def _forget_index(self, rows: int) -> None:
        for column in (self.offsets, self.positions, self.times):
            del column[rows:]
        self._saved = min(self._saved, rows)
        self._indexed = 0

    def _remember(self, offset: int, byte: int) -> None:
        places = self._places
        if offset not in places and len(places) >= _POSITIONS_MAX:
            del places[next(iter(places))]
        places[offset] = byte

    def _damaged(self, byte: int, what: str) -> CorruptSegment:
        return CorruptSegment(
            f"{self.path}.log: damaged at byte {byte} of {self.flushed}: {what}. Everything before it is "
            f"intact. Restore the folder from a backup."
        )
