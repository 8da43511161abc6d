"""The aborted transactions of one partition: what a read_committed reader must skip.

One row per abort marker, in the order of the markers. Invariant: for every range below the last stable offset, `within`
names each aborted transaction that has a record in it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Final

from .errors import FolderError

_COLUMNS: Final = 4


class AbortedRanges:
    """Rows (producer id, first offset, offset of the marker, first offset of any transaction still open then).

    The last column ends a search early: whatever ends later has started at or after it (Kafka's transaction index
    keeps the last stable offset for the same purpose).
    """

    __slots__ = ("firsts", "markers", "producers", "stables")

    def __init__(self) -> None:
        self.producers = array("q")
        self.firsts = array("q")
        self.markers = array("q")
        self.stables = array("q")

    def __len__(self) -> int:
        return len(self.markers)

    def add(self, producer_id: int, first_offset: int, marker_offset: int, stable_offset: int) -> None:
        assert not self.markers or marker_offset > self.markers[-1], (marker_offset, self.markers[-1])
        self.producers.append(producer_id)
        self.firsts.append(first_offset)
        self.markers.append(marker_offset)
        self.stables.append(stable_offset)

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """(producer id, first offset) of those that overlap [start, end), by first offset."""
        found: list[tuple[int, int]] = []
        index = bisect_left(self.markers, start)
        for row in range(index, len(self.markers)):
            if self.firsts[row] < end:
                found.append((self.producers[row], self.firsts[row]))
            if self.stables[row] >= end:
                break
        found.sort(key=lambda pair: pair[1])
        return found

    def truncate_before(self, offset: int) -> None:
        """Forgets transactions whose marker lies below `offset`."""
        index = bisect_left(self.markers, offset)
        if index:
            for column in (self.producers, self.firsts, self.markers, self.stables):
                del column[:index]

    def to_bytes(self) -> bytes:
        return b"".join(column.tobytes() for column in (self.producers, self.firsts, self.markers, self.stables))

    @staticmethod
    def from_bytes(data: bytes) -> AbortedRanges:
        ranges = AbortedRanges()
        size = len(data) // _COLUMNS
        if size * _COLUMNS != len(data) or size % 8:
            raise FolderError(f"a checkpoint holds {len(data)} bytes of aborted transactions, which is no whole row")
        for index, column in enumerate((ranges.producers, ranges.firsts, ranges.markers, ranges.stables)):
            column.frombytes(data[index * size : (index + 1) * size])
        return ranges
