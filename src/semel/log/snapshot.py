"""What a checkpoint keeps of one partition: everything but the bytes of its segments."""

from __future__ import annotations

import msgspec

from .producers import Accepted


class SegmentSnapshot(msgspec.Struct, frozen=True, array_like=True):
    base_offset: int
    size: int
    max_timestamp: int


class ProducerSnapshot(msgspec.Struct, frozen=True, array_like=True):
    producer_id: int
    epoch: int
    coordinator_epoch: int
    window: list[Accepted]


class TransactionSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """An open transaction: the producer and where it starts."""

    producer_id: int
    first_offset: int
    segment: int  # base offset of the segment that holds it
    byte: int  # where in it


class PartitionSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """`Partition.restore` turns it into the partition it was taken of."""

    topic_id: str
    index: int
    start_offset: int
    end_offset: int
    segments: list[SegmentSnapshot]
    producers: list[ProducerSnapshot]
    transactions: list[TransactionSnapshot]
    epochs: list[tuple[int, int]]  # leader epoch, its first offset
    aborted: bytes  # aborted.AbortedRanges.to_bytes()
