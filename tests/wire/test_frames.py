"""Frames are whole whatever pieces the socket brings them in, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.wire.errors import MalformedFrame
from semel.wire.frames import CAPACITY_KEPT, CAPACITY_START, Frames


def feed(frames: Frames, data: bytes, step: int) -> list[bytes]:
    found = []
    while data:
        room = frames.room()
        size = min(step, len(room), len(data))
        assert size > 0
        room[:size] = data[:size]
        data = data[size:]
        frames.received(size)
        while (frame := frames.next()) is not None:
            found.append(frame)
    return found


@given(st.lists(st.integers(1, 200_000), max_size=6), st.integers(1, 100_000))
def test_frames_come_out_as_they_went_in(sizes: list[int], step: int) -> None:
    """In every cutting of the stream."""
    sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    frames = Frames(1_000_000)
    stream = b"".join(len(frame).to_bytes(4) + frame for frame in sent)
    assert feed(frames, stream, max(step, len(stream) // 500)) == sent
    assert frames.pending == 0


@pytest.mark.parametrize("size", [0, -1, 1001, 0x47455420])
def test_a_frame_of_a_forbidden_size_is_refused(size: int) -> None:
    """Before any memory is taken for it; "GET " is a size of more than a gigabyte."""
    frames = Frames(1000)
    with pytest.raises(MalformedFrame, match="Kafka client"):
        feed(frames, size.to_bytes(4, signed=True), 4)


def test_the_buffer_of_a_large_frame_is_let_go() -> None:
    """A connection that once sent much does not hold the memory for ever."""
    frames = Frames(100_000_000)
    size = CAPACITY_KEPT + 1
    assert len(feed(frames, size.to_bytes(4) + bytes(size), 1 << 20)) == 1
    assert len(frames.room()) == CAPACITY_START
