"""The journal: one total order of everything that was decided, and one sync enough for all who wait.

A frame is [magic and kind 4][crc32c 4][size of meta and payload 4][size of meta 4][synced position 8][meta][payload].
Positions count bytes of the journal since the folder was made; a file is named by the position it starts at, so the
place of a frame follows from its position and the checksum, which is seeded with the position, accepts it nowhere else.
Every frame carries the position that was known synced when it was appended. That is what tells a torn tail from damage:

Invariants. What `sync` returned is in every later replay, unchanged, or replay raises CorruptJournal. What replay
yields is a prefix of what was appended. When replay has ended, all that it yielded is synced: the tail that was not
known to be is written again, never trusted, because pages whose sync failed still read well until the next crash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from semel.ports import Buffer, Disk, File
from semel.record.crc import crc32c

from .errors import CorruptJournal, FolderError, JournalFailed

FOLDER: Final = "journal"
_SUFFIX: Final = ".log"
_UNFINISHED: Final = ".new"  # being written; counts only under its final name

_HEADER: Final = struct.Struct("<4sIIIQ")
_CHECKED: Final = struct.Struct("<4sIIQQ")  # magic, sizes, synced position, own position: what the checksum starts with
HEADER_BYTES: Final = _HEADER.size
_MAGIC: Final = b"sj\xf1"
_RECORD: Final = _MAGIC + b"r"
_CHECKPOINT: Final = _MAGIC + b"c"  # a record of a checkpoint
_COMPLETE: Final = _MAGIC + b"e"  # the checkpoint ends here
_NOTE: Final = _MAGIC + b"n"  # carries a synced position and nothing else
_KINDS: Final = frozenset((_RECORD, _CHECKPOINT, _COMPLETE, _NOTE))

_READ_BYTES: Final = 1 << 20
REWRITE_BYTES: Final = 4 << 20  # a tail is rewritten in pieces of about this size: the space that recovery needs


class Entry(NamedTuple):
    """One record in order. `position` is the one `append` returned: the end of its frame."""

    position: int
    meta: bytes
    payload: memoryview


@dataclass(frozen=True, slots=True)
class _Frame:
    kind: bytes
    start: int
    end: int
    synced: int
    meta: bytes
    payload: memoryview


def _name(position: int) -> str:
    return f"{FOLDER}/{position:020d}{_SUFFIX}"


class Journal:
    """One writer. `sync` may run in another thread beside everything else; all else belongs to one thread.

    After `open` comes `replay`, to its end; then appending. After a failed write or sync every call raises
    JournalFailed.
    """

    def __init__(self, disk: Disk, starts: list[int]) -> None:
        self._disk = disk
        self._starts = starts  # of the files on disk, ascending
        self._file: File | None = None
        self._file_start = starts[-1] if starts else 0
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._end = 0  # position after the last append
        self._written = 0  # handed to the system
        self._synced = 0
        self._noted = 0  # the synced position that the disk knows of
        self._failed: BaseException | None = None
        self._replayed = False
        self._older: list[int] = []  # files below the newest checkpoint, found at start
        self._pieces: list[int] = []  # frame boundaries, REWRITE_BYTES apart: where a tail may be cut into pieces
        self.checkpoint_position = 0  # where the newest checkpoint starts; 0 before the first
        self.checkpoint_end = 0
        self.records_since_checkpoint = 0  # with `bytes_since_checkpoint`: how long a restart would take

    @staticmethod
    def open(disk: Disk) -> Journal:
        """Looks which files there are; reads nothing yet. FolderError for a name that no journal file has."""
        starts: list[int] = []
        for name in disk.list(FOLDER):
            stem = name.removesuffix(_SUFFIX)
            if name.endswith(_UNFINISHED):
                disk.remove(f"{FOLDER}/{name}")
            elif name.endswith(_SUFFIX) and len(stem) == 20 and stem.isdigit():
                starts.append(int(stem))
            else:
                raise FolderError(
                    f"{FOLDER}/{name}: no journal file has such a name. Move it out of the folder, then start again."
                )
        return Journal(disk, sorted(starts))

    # --- Appending

    @property
    def end(self) -> int:
        """The position after everything appended so far."""
        return self._end

    @property
    def written(self) -> int:
        return self._written

    @property
    def synced(self) -> int:
        return self._synced

    @property
    def unwritten(self) -> bool:
        return bool(self._pending)

    @property
    def failed(self) -> BaseException | None:
        return self._failed

    @property
    def bytes_since_checkpoint(self) -> int:
        """What a restart would have to replay."""
        return self._end - self.checkpoint_end

    @property
    def size(self) -> int:
        """Bytes of all journal files."""
        return self._end - self._starts[0] if self._starts else 0

    def append(self, meta: bytes, payload: Buffer = b"") -> int:
        """Keeps the record in memory until `write`; returns the position after it. The payload must not change
        until then."""
        if self._failed is not None:
            raise self._refusal()
        self.records_since_checkpoint += 1
        return self._append(_RECORD, meta, payload)

    def _append(self, kind: bytes, meta: bytes, payload: Buffer) -> int:
        assert self._replayed, "replay comes before the first append"
        parts = _frame(kind, self._end, self._synced, meta, payload)
        self._pending += parts
        size = HEADER_BYTES + len(meta) + len(payload)
        self._pending_bytes += size
        self._end += size
        return self._end

    def write(self) -> int:
        """Hands everything appended to the system, in one writev; returns the position it covers."""
        if self._failed is not None:
            raise self._refusal()
        parts = self._pending
        if parts:
            self._pending = []
            self._pending_bytes = 0
            try:
                self._current().append(parts)
            except BaseException as error:
                self._failed = error
                raise
            self._written = self._end
        return self._written

    def sync(self) -> int:
        """Makes durable what was written before the call, and returns its position.

        For one other thread at a time. The position is taken before the file: a checkpoint in between has synced
        the old file, so that whichever file is synced here, what was written up to the position is durable.
        """
        if self._failed is not None:
            raise self._refusal()
        position = self._written
        if position > self._synced:
            file = self._file
            assert file is not None
            try:
                file.sync()
            except BaseException as error:
                self._failed = error
                raise
            if position > self._synced:
                self._synced = position
        return position

    def close(self) -> None:
        """A clean end: writes, syncs, and notes that, so that any later damage is told from a torn tail."""
        if self._failed is not None or not self._replayed:
            return
        self.write()
        self.sync()
        if self._noted < self._synced and self._end > 0:
            self._append(_NOTE, b"", b"")
            self.write()
            self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._failed = JournalFailed("the journal is closed")

    # --- Checkpoints

    def checkpoint(self, records: Iterable[tuple[bytes, Buffer]]) -> int:
        """Starts a new file headed by these records, from which a replay may start; durable on return.

        Everything that the records leave out (the bytes of the segments) must have been synced before. Files below
        stay until `drop_before(checkpoint_position)`.
        """
        self.write()
        self.sync()
        start = self._end
        name = _name(start)
        try:
            # Where nothing was appended since the file was started, its name is taken: by a file that ends where
            # it starts, or by a checkpoint of this very state.
            if self._starts and self._starts[-1] == start and self._current().size() > 0:
                raise AssertionError(f"{name} holds {self._current().size()} bytes but ends at its start")
            unfinished = name + _UNFINISHED
            if self._disk.exists(unfinished):
                self._disk.remove(unfinished)
            file = self._disk.open(unfinished)
            parts: list[Buffer] = []
            pending = 0
            end = start
            for meta, payload in records:
                parts += _frame(_CHECKPOINT, end, start, meta, payload)
                size = HEADER_BYTES + len(meta) + len(payload)
                end += size
                pending += size
                if pending > _READ_BYTES:
                    file.append(parts)
                    parts, pending = [], 0
            parts += _frame(_COMPLETE, end, start, b"", b"")
            end += HEADER_BYTES
            file.append(parts)
            file.sync()
            self._disk.rename(unfinished, name)
            self._disk.sync_folder(FOLDER)
        except BaseException as error:
            self._failed = error
            raise
        # The old file object lives on in a thread that may be syncing it; the last user closes it.
        self._end = end
        self._file = file
        self._file_start = start
        self._written = end
        self._synced = end
        self._noted = start
        if not self._starts or self._starts[-1] != start:
            self._starts.append(start)
        self.checkpoint_position = start
        self.checkpoint_end = end
        self.records_since_checkpoint = 0
        return end

    def drop_before(self, position: int) -> None:
        """Removes the files that end at or below `position`, which must not exceed the checkpoint's start."""
        assert position <= self.checkpoint_position, (position, self.checkpoint_position)
        dropped = False
        while len(self._starts) > 1 and self._starts[1] <= position:
            self._disk.remove(_name(self._starts[0]))
            del self._starts[0]
            dropped = True
        if dropped:
            self._disk.sync_folder(FOLDER)

    # --- Replay

    def replay(self) -> Iterator[Entry]:
        """Yields what the journal holds, from its newest checkpoint on; once, to the end, before anything else.

        When it is exhausted the tail is rewritten and synced, files that no longer count are removed, and the journal
        can be appended to. CorruptJournal when something that had been synced is damaged.
        """
        assert not self._replayed, "the journal has been replayed"
        self._start_at_checkpoint()
        if not self._starts:
            self._disk.open(_name(0))
            self._disk.sync_folder("")
            self._disk.sync_folder(FOLDER)
            self._starts.append(0)
            self._replayed = True
            return
        position = first = self._starts[0]
        known = 0  # synced for sure
        solid = first  # end of the last frame that is more than a note
        in_checkpoint = False
        cut: tuple[int, str] | None = None
        for index, start in enumerate(self._starts):
            if start != position:
                cut = (position, f"the next file starts at {start}")
                break
            stop = self._starts[index + 1] if index + 1 < len(self._starts) else None
            for frame in _frames(self._disk.open(_name(start)), start, stop):
                if isinstance(frame, str):
                    cut = (position, frame)
                    break
                if frame.start - (self._pieces[-1] if self._pieces else first) >= REWRITE_BYTES:
                    self._pieces.append(frame.start)
                position = frame.end
                known = max(known, frame.synced)
                if frame.kind == _RECORD:
                    solid = position
                    self.records_since_checkpoint += 1
                    yield Entry(position, frame.meta, frame.payload)
                elif frame.kind == _CHECKPOINT:
                    # A file starts with a checkpoint or holds none; older ones are not read again.
                    in_checkpoint = True
                    solid = position
                    yield Entry(position, frame.meta, frame.payload)
                elif frame.kind == _COMPLETE:
                    in_checkpoint = False
                    self.checkpoint_position = start
                    self.checkpoint_end = position
                    known = max(known, position)  # it got its name after its sync
                    solid = position
            if cut is not None:
                break
        self._settle(position, known, solid, in_checkpoint, cut)

    def _start_at_checkpoint(self) -> None:
        """Leaves in `_starts` the files from the newest checkpoint on; older ones are removed by `_settle`."""
        for index in range(len(self._starts) - 1, -1, -1):
            start = self._starts[index]
            head = self._disk.open(_name(start)).read(0, 4)
            if head in (_CHECKPOINT, _COMPLETE):
                self._older = self._starts[:index]
                self._starts = self._starts[index:]
                return
        if self._starts and self._starts[0] != 0:
            raise CorruptJournal(
                f"{_name(self._starts[0])} is the oldest file of the journal and holds no checkpoint: an older file is "
                f"missing. Put it back, or restore the folder from a backup."
            )

    def _settle(self, end: int, known: int, solid: int, in_checkpoint: bool, cut: tuple[int, str] | None) -> None:
        """Decides about the tail, then makes it durable."""
        file_start = max(start for start in self._starts if start <= end)
        if cut is not None or in_checkpoint:
            reason = cut[1] if cut is not None else "the checkpoint does not end"
            # A frame further on that knows a later position as synced proves that this was no torn tail.
            known = max(known, self._known_after(end, file_start))
            if end < known or in_checkpoint:
                raise CorruptJournal(
                    f"{_name(file_start)}: damaged at byte {end - file_start} ({reason}), though everything up to byte "
                    f"{known - file_start} had been synced. Everything before it is intact, nothing was changed. "
                    f"Restore the folder from a backup, or move it away to start empty."
                )
        for start in [start for start in self._starts if start > end]:
            self._disk.remove(_name(start))
            self._starts.remove(start)
        if known >= solid:
            end = solid  # what follows are notes
        file = self._disk.open(_name(file_start))
        if file.size() > end - file_start:
            file.truncate(end - file_start)
            # Before anything is appended: a frame of the tail that was cut must not come back behind a new one.
            file.sync()
        self._rewrite(known, end)
        for start in self._older:
            self._disk.remove(_name(start))
        self._disk.sync_folder("")
        self._disk.sync_folder(FOLDER)
        self._file = None
        self._file_start = self._starts[-1]
        self._end = self._written = self._synced = end
        self._noted = known
        self._replayed = True

    def _known_after(self, position: int, file_start: int) -> int:
        """The highest synced position that any intact frame behind `position` carries."""
        known = 0
        for start in [s for s in self._starts if s >= file_start]:
            file = self._disk.open(_name(start))
            at = max(0, position - start)
            size = file.size()
            window = b""
            while at < size:
                window = file.read(at, _READ_BYTES)
                found = window.find(_MAGIC)
                while found >= 0:
                    frame = _frame_at(file, start, at + found, size)
                    if isinstance(frame, _Frame):
                        known = max(known, frame.synced)
                    found = window.find(_MAGIC, found + 1)
                at += max(1, len(window) - len(_MAGIC))
        return known

    def _rewrite(self, known: int, end: int) -> None:
        """Writes [known, end) again, into new files, and syncs them.

        From its end towards its start, in pieces: each is complete under its name before the piece is cut off the old
        file, so a crash at any point leaves the chain whole, and a full disk needs room for one piece only. A file ends
        where the next one starts; what a crash leaves behind that is not read.
        """
        pieces = sorted({known, *self._starts, *self._pieces})
        for piece in reversed([position for position in pieces if known <= position < end]):
            start = max(s for s in self._starts if s <= piece)
            old = self._disk.open(_name(start))
            self._copy(old, start, piece, end)
            if piece != start:  # else the copy has taken the place of the whole file
                self._starts.append(piece)
                old.truncate(piece - start)
                old.sync()
            end = piece
        self._starts.sort()

    def _copy(self, old: File, old_start: int, start: int, end: int) -> None:
        unfinished = _name(start) + _UNFINISHED
        new = self._disk.open(unfinished)
        new.truncate(0)
        at = start
        while at < end:
            data = old.read(at - old_start, min(_READ_BYTES, end - at))
            assert data, (at, end)
            new.append([data])
            at += len(data)
        new.sync()
        self._disk.rename(unfinished, _name(start))
        self._disk.sync_folder(FOLDER)

    # --- Within

    def _current(self) -> File:
        if self._file is None:
            self._file = self._disk.open(_name(self._file_start))
        return self._file

    def _refusal(self) -> JournalFailed:
        return JournalFailed(
            f"{_name(self._file_start)}: an earlier write or sync failed ({self._failed}), so nobody knows what the "
            f"disk holds. Nothing after it was acknowledged. Start again: recovery keeps everything that was."
        )


def _frame(kind: bytes, position: int, synced: int, meta: bytes, payload: Buffer) -> list[Buffer]:
    size = len(meta) + len(payload)
    crc = crc32c(meta, crc32c(_CHECKED.pack(kind, size, len(meta), synced, position)))
    if not len(payload):
        return [_HEADER.pack(kind, crc, size, len(meta), synced) + meta]
    return [_HEADER.pack(kind, crc32c(payload, crc), size, len(meta), synced) + meta, payload]


def _frame_at(file: File, file_start: int, at: int, size: int) -> _Frame | str:
    """The frame at byte `at` of the file, or what is wrong with it."""
    return _decode(file.read(at, HEADER_BYTES), file, file_start, at, size)


def _decode(head: bytes, file: File, file_start: int, at: int, size: int) -> _Frame | str:
    if len(head) < HEADER_BYTES:
        return f"a frame's header is cut off after {len(head)} bytes"
    kind, crc, length, meta_length, synced = _HEADER.unpack(head)
    position = file_start + at
    if kind not in _KINDS:
        return "no frame starts here"
    if meta_length > length or at + HEADER_BYTES + length > size:
        return f"the frame is cut off: {length} bytes expected, {size - at - HEADER_BYTES} are there"
    body = file.read(at + HEADER_BYTES, length)
    if crc32c(body, crc32c(_CHECKED.pack(kind, length, meta_length, synced, position))) != crc or synced > position:
        return "the frame fails its checksum"
    view = memoryview(body)
    return _Frame(
        kind, position, position + HEADER_BYTES + length, synced, bytes(view[:meta_length]), view[meta_length:]
    )


def _frames(file: File, file_start: int, stop: int | None) -> Iterator[_Frame | str]:
    """The frames of a file in order, up to `stop`; a text instead of the first that is wrong, then nothing."""
    size = file.size()
    if stop is not None:
        size = min(size, stop - file_start)
    at = 0
    buffer = b""
    base = 0  # where in the file the buffer starts
    while at < size:
        # Frames are cut out of large reads; one that does not fit is read again from its start.
        if at + HEADER_BYTES > base + len(buffer):
            buffer, base = file.read(at, _READ_BYTES), at
        offset = at - base
        head = buffer[offset : offset + HEADER_BYTES]
        if len(head) == HEADER_BYTES:
            kind, crc, length, meta_length, synced = _HEADER.unpack(head)
            frame_end = at + HEADER_BYTES + length
            if kind in _KINDS and meta_length <= length and frame_end <= size:
                if frame_end > base + len(buffer):
                    buffer, base = file.read(at, max(_READ_BYTES, frame_end - at)), at
                    offset = 0
                body = memoryview(buffer)[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
                position = file_start + at
                seed = crc32c(_CHECKED.pack(kind, length, meta_length, synced, position))
                if crc32c(body, seed) == crc and synced <= position:
                    end = file_start + frame_end
                    yield _Frame(kind, position, end, synced, bytes(body[:meta_length]), body[meta_length:])
                    at = frame_end
                    continue
        wrong = _decode(head, file, file_start, at, size)
        yield wrong if isinstance(wrong, str) else "the frame changed while it was read"
        return
    if stop is not None and file_start + at < stop:
        yield f"the file ends here, the next one starts {stop - file_start - at} bytes later"
