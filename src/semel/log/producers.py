"""What a partition remembers of its producers: epochs, and the last five batches of each, with their checksums.

Decides whether a batch is new, a repetition, out of order, fenced, or other bytes under a used sequence. Invariant:
what was accepted within the window is answered as it was the first time and never stored twice (KIP-98), and bytes that
differ from those first accepted are refused instead of being taken for a repetition (Kafka compares ranges only).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

WINDOW: Final = 5  # Kafka's: producers keep at most five requests in flight
NO_PRODUCER: Final = -1
SEQUENCE_MAX: Final = 0x7FFFFFFF


class Accepted(NamedTuple):
    """One batch in the window."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    crc: int
    timestamp: int  # the batch's largest


@dataclass(frozen=True, slots=True)
class Accept:
    """Append it."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """It is in the log already, at `base_offset`: give the first answer again once that is durable."""

    base_offset: int
    last_offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class OutOfOrder:
    """A batch before it is missing, or it lies below the window so that nobody can tell a repetition from a loss."""

    expected: int
    found: int
    below_window: bool


@dataclass(frozen=True, slots=True)
class Fenced:
    """A newer epoch of this producer has written here or was fenced in by a marker."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Its sequences were used by other bytes: storing it or calling it a repetition would lose one of the two (B19)."""

    base_offset: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class NotInTransaction:
    """A plain batch of a producer whose transaction is open in this partition (Kafka: INVALID_TXN_STATE)."""

    first_offset: int


Verdict = Accept | Duplicate | OutOfOrder | Fenced | Conflict | NotInTransaction
ACCEPT: Final = Accept()


class Producer:
    """The state of one producer id in one partition."""

    __slots__ = ("coordinator_epoch", "epoch", "window")

    def __init__(self, epoch: int, coordinator_epoch: int = -1) -> None:
        self.epoch = epoch
        self.coordinator_epoch = coordinator_epoch
        self.window: deque[Accepted] = deque(maxlen=WINDOW)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Producer):
            return NotImplemented
        return (self.epoch, self.coordinator_epoch, self.window) == (
            other.epoch,
            other.coordinator_epoch,
            other.window,
        )

    __hash__ = None  # type: ignore[assignment]


class Producers:
    """All producers of a partition. `check` changes nothing; `appended` and `marked` are called by apply alone."""

    __slots__ = ("by_id",)

    def __init__(self) -> None:
        self.by_id: dict[int, Producer] = {}

    def check(self, producer_id: int, epoch: int, first_sequence: int, last_sequence: int, crc: int) -> Verdict:
        if first_sequence < 0:
            # Only the broker itself writes without sequences (offsets in a transaction), and it does not ask.
            return OutOfOrder(0, first_sequence, False)
        producer = self.by_id.get(producer_id)
        if producer is None:
            # Nothing is known of it here: a client goes on with its sequence after its topic was made anew, so any
            # first sequence is accepted, as Kafka does.
            return ACCEPT
        if epoch < producer.epoch:
            # A zombie: a newer instance has written, or the coordinator has fenced this one (KIP-98).
            return Fenced(producer.epoch)
        if epoch > producer.epoch:
            # The client bumped its own epoch (KIP-360) or was given a new one: sequences start again.
            return ACCEPT if first_sequence == 0 else OutOfOrder(0, first_sequence, False)
        window = producer.window
        if not window:
            return ACCEPT if first_sequence == 0 else OutOfOrder(0, first_sequence, False)
        last = window[-1].last_sequence
        expected = last + 1 if last != SEQUENCE_MAX else 0
        if first_sequence == expected:
            return ACCEPT
        for used in window:
            if used.first_sequence == first_sequence and used.last_sequence == last_sequence:
                if used.crc != crc:
                    return Conflict(used.base_offset, first_sequence, last_sequence)
                count = _distance(first_sequence, last_sequence)
                return Duplicate(used.base_offset, used.base_offset + count, used.timestamp)
        for used in window:
            # Part of a batch that was accepted: a repetition is whole, so these are other bytes.
            if _overlap(used, first_sequence, last_sequence):
                return Conflict(used.base_offset, used.first_sequence, used.last_sequence)
        behind = _distance(first_sequence, expected) < SEQUENCE_MAX // 2
        return OutOfOrder(expected, first_sequence, behind)

    def appended(
        self, producer_id: int, epoch: int, first_sequence: int, last_sequence: int, base_offset: int, crc: int, at: int
    ) -> None:
        producer = self.by_id.get(producer_id)
        if producer is None:
            producer = self.by_id[producer_id] = Producer(epoch)
        elif epoch != producer.epoch:
            assert epoch > producer.epoch, (producer_id, epoch, producer.epoch)
            producer.epoch = epoch
            producer.window.clear()
        if first_sequence >= 0:
            producer.window.append(Accepted(first_sequence, last_sequence, base_offset, crc, at))

    def marked(self, producer_id: int, epoch: int, coordinator_epoch: int) -> None:
        """A marker was appended. One with a higher epoch fences the older one here too, and starts a new sequence."""
        producer = self.by_id.get(producer_id)
        if producer is None:
            self.by_id[producer_id] = Producer(epoch, coordinator_epoch)
            return
        if epoch != producer.epoch:
            assert epoch > producer.epoch, (producer_id, epoch, producer.epoch)
            producer.epoch = epoch
            producer.window.clear()
        producer.coordinator_epoch = coordinator_epoch


def _distance(first: int, last: int) -> int:
    """Steps from `first` to `last`; sequences wrap to 0 after 2**31 - 1."""
    return (last - first) & SEQUENCE_MAX


def _overlap(used: Accepted, first: int, last: int) -> bool:
    return _distance(used.first_sequence, first) <= _distance(used.first_sequence, used.last_sequence) or _distance(
        first, used.first_sequence
    ) <= _distance(first, last)
