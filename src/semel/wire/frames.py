"""Frames on a connection: four bytes of length, then that many bytes.

`Frames` owns one receive buffer: the socket reads into `room()`, `next()` hands back one frame after the other.
A frame is copied out of the buffer once, as bytes; record batches then stay views into it, all the way to the journal.

Invariant: never more memory than one frame of the allowed size, plus what one read brings.
"""

from __future__ import annotations

from struct import Struct

from semel.wire.errors import MalformedFrame

LENGTH = Struct(">i")
CAPACITY_START = 64 * 1024
CAPACITY_KEPT = 4 * 1024 * 1024  # a buffer that grew past this is let go once it is empty


class Frames:
    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray(CAPACITY_START)
        self._start = 0  # of the first byte not handed out
        self._end = 0  # of the received bytes
        self._wanted = 0  # size of the frame at _start with its length, once that is known

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        held = self._end - self._start
        if held == 0:
            self._start = self._end = 0
            if len(self._buffer) > CAPACITY_KEPT and self._wanted <= CAPACITY_KEPT:
                self._buffer = bytearray(CAPACITY_START)
        need = max(self._wanted, held + 1)
        if need > len(self._buffer):
            grown = bytearray(max(need, CAPACITY_START))
            grown[:held] = memoryview(self._buffer)[self._start : self._end]
            self._buffer, self._start, self._end = grown, 0, held
        elif self._start and (self._start + need > len(self._buffer) or self._end == len(self._buffer)):
            # The rest of a partial frame moves to the front: at most once per frame.
            self._buffer[:held] = self._buffer[self._start : self._end]
            self._start, self._end = 0, held
        return memoryview(self._buffer)[self._end :]

    def received(self, count: int) -> None:
        """Takes note of `count` new bytes."""
        self._end += count

    def next(self) -> bytes | None:
        """The next frame that is whole, without its length; None when there is none yet. MalformedFrame for a size
        that is not allowed."""
        if self._end - self._start < 4:
            return None
        (size,) = LENGTH.unpack_from(self._buffer, self._start)
        if not 0 < size <= self.frame_bytes_max:
            raise MalformedFrame(
                f"a frame of {size} bytes; allowed are 1 to {self.frame_bytes_max} (is this a Kafka client?)"
            )
        self._wanted = 4 + size
        if self._end - self._start < self._wanted:
            return None
        frame = bytes(memoryview(self._buffer)[self._start + 4 : self._start + self._wanted])
        self._start += self._wanted
        self._wanted = 0
        return frame

    @property
    def pending(self) -> int:
        """Bytes received and not yet part of a whole frame."""
        return self._end - self._start
