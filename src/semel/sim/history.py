"""What happened in a simulated world, in order: what the checkers read, and one line each for people.

Told by programs: Wrote, Settled, Ending, Ended, Read, Given. Told by the broker's replies as they leave: Acked, Forged,
Marks, Epoch, Offsets. Told by the cluster: Crashed, Recovered, Final. Invariant: nothing here decides; the text of an
event is a function of its content, so that one seed gives one history to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from semel.broker.messages import FetchResponse
from semel.ports import TopicPartition
from semel.record import crc32c


class Arrived(NamedTuple):
    """A request reached the broker."""

    at_ms: int
    who: str
    connection: int
    message: Any


class Left(NamedTuple):
    """A reply left the broker; None: the connection was ended instead."""

    at_ms: int
    who: str
    connection: int
    message: Any


class Note(NamedTuple):
    at_ms: int
    text: str


class Wrote(NamedTuple):
    """A program asked for these values to be written; `txn`: which of its transactions, -1 outside."""

    at_ms: int
    who: str
    txn: int
    at: TopicPartition
    values: tuple[str, ...]


class Settled(NamedTuple):
    """What the client said became of a batch: Done, NotDone, Fenced or Unknown."""

    at_ms: int
    who: str
    txn: int
    at: TopicPartition
    values: tuple[str, ...]
    outcome: str
    base_offset: int


class Ending(NamedTuple):
    """A program asks for the end of its transaction."""

    at_ms: int
    who: str
    txn: int
    commit: bool


class Ended(NamedTuple):
    at_ms: int
    who: str
    txn: int
    commit: bool
    outcome: str


class Read(NamedTuple):
    """A reader was handed everything it may see between `start` and `next_offset`."""

    at_ms: int
    who: str
    committed: bool
    at: TopicPartition
    start: int
    next_offset: int
    records: tuple[tuple[int, str], ...]  # offset, value


class Given(NamedTuple):
    """A group gave partitions to a member."""

    at_ms: int
    who: str
    generation: int
    partitions: tuple[TopicPartition, ...]


class Acked(NamedTuple):
    """The broker told that a batch is in the log."""

    at_ms: int
    who: str
    at: TopicPartition
    base_offset: int
    records: int


class Forged(NamedTuple):
    """Somebody sent other bytes under sequences that a producer had used; the broker answered with this code."""

    at_ms: int
    at: TopicPartition
    base_sequence: int
    error_code: int


class Marks(NamedTuple):
    """The broker told a partition's high watermark and last stable offset."""

    at_ms: int
    at: TopicPartition
    high_watermark: int
    last_stable_offset: int


class Epoch(NamedTuple):
    """The broker told a transactional id its epoch: whoever had a lower one is superseded. `ends`: where the next
    batch of each partition would have gone at that moment."""

    at_ms: int
    id: str
    producer_id: int
    epoch: int
    ends: Mapping[TopicPartition, int]


class Offsets(NamedTuple):
    """The broker told the committed, stable offsets of the group."""

    at_ms: int
    offsets: Mapping[TopicPartition, int]


class Snapshot(NamedTuple):
    """What a broker knows after its recovery, or in the end."""

    run: int
    marks: Mapping[TopicPartition, tuple[int, int, int]]  # end, high watermark, last stable offset
    epochs: Mapping[str, tuple[int, int]]  # transactional id -> producer id, epoch
    prepared: tuple[str, ...]  # transactional ids whose decision is not carried out
    hanging: tuple[tuple[TopicPartition, int], ...]  # open in a partition for a producer without open transaction
    offsets: Mapping[TopicPartition, int]
    generation: int


class Crashed(NamedTuple):
    at_ms: int
    how: str
    where: str


class Recovered(NamedTuple):
    at_ms: int
    state: Snapshot


class Batch(NamedTuple):
    """One batch of the log as it was in the end. kind: plain, open (of a transaction), commit, abort."""

    base_offset: int
    next_offset: int
    producer_id: int
    epoch: int
    kind: str
    values: tuple[str, ...]


class Final(NamedTuple):
    at_ms: int
    state: Snapshot
    log: Mapping[TopicPartition, tuple[Batch, ...]]


Event = (
    Arrived
    | Left
    | Note
    | Wrote
    | Settled
    | Ending
    | Ended
    | Read
    | Given
    | Acked
    | Forged
    | Marks
    | Epoch
    | Offsets
    | Crashed
    | Recovered
    | Final
)


class History:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)

    def lines(self) -> Iterator[str]:
        return map(line, self.events)


def line(event: Event) -> str:
    match event:
        case Note(at_ms, text):
            return f"{at_ms} {text}"
        case Arrived(at_ms, who, connection, message):
            return f"{at_ms} {who} #{connection} > {message}"
        case Left(at_ms, who, connection, message):
            return f"{at_ms} {who} #{connection} < {_shown(message)}"
        case Final(at_ms, state, log):
            stored = [f"\n  {at.topic}-{at.partition} {batch}" for at, batches in log.items() for batch in batches]
            return f"{at_ms} Final {state}{''.join(stored)}"
        case _:
            return f"{event.at_ms} {event}"


def _shown(message: object) -> str:
    if not isinstance(message, FetchResponse):
        return str(message)
    found = [
        (topic.topic, p.partition_index, p.error_code, p.last_stable_offset, crc32c(b"".join(p.records or ())))
        for topic in message.responses
        for p in topic.partitions
    ]
    return f"FetchResponse({found})"
