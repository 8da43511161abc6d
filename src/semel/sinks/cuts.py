"""Cuts: what a delivery writes down of them in its delivery topic, and how it is read back.

A cut is the range [start, end) of an outbox partition that leaves in one step: one object, one insert, one run of
requests. It is decided once, by any rule, also the clock, and is a record of the delivery topic before its first byte
leaves. The topic has a partition per outbox partition, and in each one record matters, the last: where the delivery is,
and the cut that is under way.

Invariant: cuts follow each other without a gap. `position` is the end of the last cut that the sink holds; the next
one starts there, so objects named by their cuts neither overlap nor leave anything out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from semel.contract import LogIdentity, Rows
from semel.ports import Log, TopicPartition
from semel.sinks.sink import Diverged, SinkError

KEY = b"delivery"
CONFIG = {"cleanup.policy": "compact"}
OUTBOX_ENDING, ENDING = "-outbox", "-delivery"
TAIL = 256  # offsets that are read first
UNDECIDED_MAX = 100  # tenths of a second that an open transaction of somebody else is waited for
UNDECIDED_BESIDE = 5  # … in a partition that is only looked at: its former owner may be dead


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    start: int
    end: int
    records: int
    attempt: int  # of a sink that prepares (TwoPhase): each take-over begins another; 1 elsewhere
    mark: str  # of its last record (origin.Mark): a replay must find the same
    form: str  # how the sink writes it: a replay in another form would be another object
    decided: bool = False  # of a sink that prepares: this attempt is prepared, and shall be committed
    at_ms: int = 0  # of a sink that forgets (Windowed): when it was written down
    seen: str = ""  # … and what the sink had counted by then (window.py)


class Refusal(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A record that the sink will never take, which is a dead letter and is left out (`refusals.py`)."""

    offset: int
    checksum: int  # of the record: another one at that offset is not left out
    row: int  # so many in a row were refused, this one included


class Refusals(msgspec.Struct, frozen=True, omit_defaults=True):
    kept: tuple[Refusal, ...] = ()  # by offset; those that the outbox still held when the last one was written down
    total: int = 0  # ever, of this outbox


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """The record of one partition. `mark` is of the last record below `position`, "" when there is none."""

    incarnation: int
    topic_id: str  # of the outbox, as its count of partitions: what `position` is a position in
    partitions: int
    position: int
    mark: str
    cut: Cut | None = None
    refused: Refusals = Refusals()


@dataclass(frozen=True, slots=True)
class Rule:
    """When a cut is due: at so many records, so many bytes of keys and values, or so long after its first record
    came, whichever is first."""

    records: int = 10_000
    bytes: int = 8 << 20
    ms: int = 10_000


def refused_in(found: Progress | None, here: LogIdentity) -> Refusals:
    """What a new beginning in the same outbox leaves out as before; the offsets of another one name other records."""
    if found is None or (found.topic_id, found.partitions) != (here.topic_id, here.partitions):
        return Refusals()
    return found.refused


def delivery_topic(outbox: str) -> str:
    """APP-SINK-outbox has APP-SINK-delivery."""
    assert outbox.endswith(OUTBOX_ENDING), outbox
    return outbox.removesuffix(OUTBOX_ENDING) + ENDING


def encoded(progress: Progress) -> Sequence[tuple[bytes, bytes | None]]:
    return [(KEY, msgspec.json.encode(progress))]


class Undecided(Exception):
    """Somebody else's transaction is open in the delivery topic, and has been for long."""


def read_progress(log: Log, at: TopicPartition, *, beside: bool = False) -> Progress | None:
    """What the delivery topic's partition says last; None where no cut was ever decided. Read committed, up to its end:
    the caller has initialised its transactional id, so nothing of a former owner is still to come. `beside`: it has
    not, it owns another partition; what is committed there is enough."""
    last = read_last(log, at, KEY, beside=beside)
    if last is None:
        return None
    try:
        return msgspec.json.decode(last, type=Progress)
    except msgspec.MsgspecError as why:
        raise Diverged(
            f"{log.name}: what {at.topic}-{at.partition} says was not written by semel ({why}). Nothing was delivered. "
            "Put the former record back."
        ) from None


def read_last(log: Log, at: TopicPartition, wanted: bytes, *, beside: bool = False) -> bytes | None:
    """The last committed value under this key."""
    first, end = log.starts([at])[at], log.ends([at])[at]
    back = TAIL
    while True:
        # The last one counts, and is near the end: a log that is not compacted holds two for every cut there ever was.
        start = max(first, end - back)
        last = _last(log, at, start, end, wanted, beside)
        if last is not None or start == first:
            return last
        back *= 16


def _last(log: Log, at: TopicPartition, start: int, end: int, wanted: bytes, beside: bool) -> bytes | None:
    last: bytes | None = None
    waited = 0
    for records in log.read(at, start, end):
        for key, value in zip(records.keys, records.values, strict=True):
            if key == wanted:
                last = value
        waited += records.undecided
        if beside and waited > UNDECIDED_BESIDE:
            return last
        if waited > UNDECIDED_MAX:
            raise Undecided(f"a transaction is open in {at.topic}-{at.partition} that is not of this delivery")
    return last


def check_delivery_topic(log: Log, outbox: str) -> None:
    """It is there, with a partition per outbox partition, and forgets nothing but what was replaced."""
    name, known = delivery_topic(outbox), log.topics()
    found, wanted = known[name].partitions, known[outbox].partitions
    if found != wanted:
        raise Diverged(
            f"{log.name}: {name} has {found} partitions, its outbox {outbox} has {wanted}: one of them was made anew "
            "or enlarged, and keys have changed partitions. Nothing was delivered. Put the former topics back, or say "
            "where the sink goes on: `semel sink adopt APP.py SINK`."
        )
    policy = log.config(name).get("cleanup.policy", "compact")
    if policy != "compact":
        raise SinkError(
            f"{log.name}: {name} has cleanup.policy={policy}: it could forget where the delivery is. "
            "Set cleanup.policy=compact."
        )


def length(rows: Rows, rule: Rule) -> int:
    """How many of these rows, in order, one cut takes; at least one."""
    sizes = weights(rows[: rule.records])
    if sum(sizes) < rule.bytes:
        return len(sizes)
    return next(count for count, size in enumerate(accumulate(sizes), 1) if size >= rule.bytes)


def weights(rows: Rows) -> Sequence[int]:
    """Of each the bytes of its key and its value."""
    return [len(key or b"") + len(value or b"") for key, value in zip(rows.keys, rows.values)]
