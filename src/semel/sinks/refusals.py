"""Records that a sink will never take (FAULTS S11): what is written down of them, read back, and left out.

Under `on_error="dead-letter"` a refusal is decided in the log, in one transaction of the delivery's transactional id:
the record as a dead letter in APP.dlq, and its offset in the delivery topic. Only then is a batch or a cut written
without it. A cut's owner keeps the offsets in its `Progress` record; where the sink (or the group) holds the position,
they are a record of their own (`Told`), which is written at each claim, too.

Invariants: an offset that is written down is left out of every batch and cut from then on, whoever writes it; it is
written down by who initialised the id last and has claimed the sink since, so nobody writes to the sink who has read
less; and what is left out is the record that was refused, by its checksum, or the delivery stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from semel.contract import LogIdentity, Row
from semel.ports import Headers, Log, NewRecord, Sink, TopicInfo, TopicPartition
from semel.record.murmur2 import partition_for
from semel.sinks import cuts, origin
from semel.sinks.cuts import Refusal, Refusals
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.streams.task import ERRORS, REASON_LENGTH_MAX

KEY = b"refused"
NO_LETTER = "It does not become a dead letter"
IN_A_ROW_MAX = 100  # so many refused records without a taken one between: the table is wrong, not the records
KEPT_MAX = 1_000  # of one partition, in what its outbox still holds
SINK = "__semel.errors.sink"  # the header that tells a sink's dead letters from those of a read


class Told(Struct, frozen=True):
    """The record of one partition, where the position lies elsewhere. `epoch`: of the claim under which it was
    written."""

    topic_id: str  # of the outbox, as its count of partitions: what the offsets are offsets in
    partitions: int
    epoch: int
    refused: Refusals


def read(log: Log, at: TopicPartition, here: LogIdentity) -> Refusals:
    """What the delivery topic's partition says, of this outbox; the caller has initialised its transactional id.
    Raises cuts.Undecided."""
    said = cuts.read_last(log, at, KEY)
    if said is None:
        return Refusals()
    try:
        told = msgspec.json.decode(said, type=Told)
    except msgspec.MsgspecError as why:
        raise Diverged(
            f"{log.name}: what {at.topic}-{at.partition} says of refused records was not written by semel ({why}). "
            "Nothing was delivered. Put the former record back."
        ) from None
    # Offsets of an outbox that was made anew name other records.
    return told.refused if (told.topic_id, told.partitions) == (here.topic_id, here.partitions) else Refusals()


def written(at: TopicPartition, here: LogIdentity, epoch: int, refused: Refusals, now_ms: int) -> NewRecord:
    """The record that `read` gives back."""
    return NewRecord(*at, KEY, msgspec.json.encode(Told(here.topic_id, here.partitions, epoch, refused)), now_ms)


def taken(rows: Sequence[Row], refused: Refusals, where: str, at: TopicPartition) -> Sequence[Row]:
    """The rows without those that were written off."""
    if not refused.kept:
        return rows
    known = {one.offset: one.checksum for one in refused.kept}
    for row in rows:
        if (wanted := known.get(row.offset)) is not None and origin.row_checksum(row) != wanted:
            raise Diverged(
                f"{where}: the record of {at.topic}-{at.partition} at offset {row.offset} was refused and is a dead "
                "letter, and another record is there now: the log went back (a backup put back, a tail lost in a power "
                "cut) and went on. Nothing was delivered. Put the newer log back."
            )
    return [row for row in rows if row.offset not in known]


class Refused(NamedTuple):
    """A record that the sink has just refused."""

    at: TopicPartition
    rows: Sequence[Row]  # all from the position on, in order, those that were left out among them
    why: RowRefused
    before: Refusals
    mark: str  # of the last record before `rows`
    incarnation: int

    @property
    def row(self) -> Row:
        return next(row for row in self.rows if row.offset == self.why.offset)


def written_off(log: Log, topic: str, sink: Sink[Any, Any], refused: Refused) -> tuple[NewRecord, Refusals]:
    """Its dead letter, and all that is written off with it. Both go into the log in one transaction, the letter first:
    where one is torn after all (FAULTS B1) a letter is repeated, not lost. Raises SinkError where so many are refused
    that it is not for the records."""
    at = refused.at
    dlq = log.topics().get(topic)
    if dlq is None:
        raise SinkError(
            f"{log.name}: the topic {topic} is gone, and a record that {sink.where} refuses must go there "
            f"({at.topic}-{at.partition} at offset {refused.why.offset}). It was not delivered. Start the app again, "
            "which makes the topic anew."
        )
    more = with_one_more(refused, log.starts([at])[at], sink.where)
    return letter(dlq, sink, refused), more


def with_one_more(refused: Refused, start: int, where: str) -> Refusals:
    """Of records below `start`, the outbox's, nothing is kept: nobody will read them again."""
    at, rows, offset = refused.at, refused.rows, refused.why.offset
    place = next(n for n, row in enumerate(rows) if row.offset == offset)
    if place:
        before = rows[place - 1].offset
    else:
        before = -1 if (found := origin.parsed(refused.mark)) is None else found.offset
    row = 1 + next((one.row for one in refused.before.kept if one.offset == before), 0)
    kept = [one for one in refused.before.kept if one.offset >= start]
    if row > IN_A_ROW_MAX or len(kept) >= KEPT_MAX:
        many = f"the {IN_A_ROW_MAX} records before it" if row > IN_A_ROW_MAX else f"{KEPT_MAX:,} that the outbox holds"
        raise SinkError(
            f"{where} refuses the record of {at.topic}-{at.partition} at offset {offset}, as it did {many}: "
            f"{refused.why}. That is not for the records: those before it are dead letters, this one was not "
            "delivered, nor what follows in its partition. Compare the table with the values, then start the app "
            "again: the delivery goes on here."
        )
    new = Refusal(offset, origin.row_checksum(rows[place]), row)
    return Refusals(tuple(sorted([*kept, new])), refused.before.total + 1)


def letter(dlq: TopicInfo, sink: Sink[Any, Any], refused: Refused) -> NewRecord:
    """The record as the outbox has it, and why (KIP-1034's names, and the sink's)."""
    at, row = refused.at, refused.row
    reason = f"{sink.where} refuses it: {refused.why}"[:REASON_LENGTH_MAX]
    headers: Headers = [
        (ERRORS + "exception", b"RowRefused"),
        (ERRORS + "message", reason.encode()),
        (ERRORS + "stacktrace", b""),
        (ERRORS + "topic", at.topic.encode()),
        (ERRORS + "partition", str(at.partition).encode()),
        (ERRORS + "offset", str(row.offset).encode()),
        (SINK, sink.name.encode()),
        (SINK + ".incarnation", str(refused.incarnation).encode()),
    ]
    partition = row.offset % dlq.partitions if row.key is None else partition_for(row.key, dlq.partitions)
    return NewRecord(dlq.name, partition, row.key, row.value, row.timestamp_ms, headers)


def no_letter(why: RowRefused) -> str:
    return f"{NO_LETTER}: {why.doubt}. " if why.doubt else ""


def said(topic: str, where: str, at: TopicPartition, why: RowRefused) -> str:
    return f"{where} refuses the record of {at.topic}-{at.partition} at offset {why.offset}: {why}; it is in {topic}"
