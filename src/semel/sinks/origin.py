"""Whether a position at a sink is a position in this log: the mark of the record before it, and how it is checked.

A mark names the last record delivered: offset, leader epoch, the id of the run that wrote it where the log tells
(`__semel_runs`), and a checksum of the record. A log that was put back, or lost its tail, gives old offsets to new
records; a position in it would skip them silently (FAULTS S12). semel's log is recognised by its runs, exactly; of
Apache Kafka, which may use an epoch again, the checksum still tells unless the record itself came again the same.

Invariant: nothing here repairs. What does not fit is Diverged, with what was found and what was expected.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from semel.contract import Row
from semel.ports import Log, Records, TopicInfo, TopicPartition
from semel.sinks.sink import Diverged, SinkError

RUNS_TOPIC = "__semel_runs"


class Mark(NamedTuple):
    offset: int  # -1: no record was delivered yet, only what no reader sees was passed
    epoch: int
    run: str  # "" where the log has no runs
    checksum: int

    def __str__(self) -> str:
        return f"{self.offset} {self.epoch} {self.run or '-'} {self.checksum:08x}"


def parsed(text: str) -> Mark | None:
    """None for the text that stands beside position 0."""
    if not text:
        return None
    try:
        offset, epoch, run, checksum = text.split(" ")
        return Mark(int(offset), int(epoch), "" if run == "-" else run, int(checksum, 16))
    except ValueError:
        raise Diverged(f"the position's run {text!r} was not written by semel: put the former text back.") from None


NOTHING = str(Mark(-1, -1, "", 0))  # beside a position that is past aborted records and markers only


def mark_of(records: Records, run: str) -> str:
    """The mark of the last record of these."""
    return str(Mark(records.offsets[-1], records.leader_epoch, run, checksum(records, -1)))


def mark_of_row(row: Row, epoch: int, run: str) -> str:
    """The mark of one record. `epoch` -1 where it is not known of this very record: then the run says nothing."""
    return str(Mark(row.offset, epoch, run if epoch >= 0 else "", _checksum(row.timestamp_ms, row.key, row.value)))


def mark_before(log: Log, at: TopicPartition, position: int, known: Mapping[int, str]) -> str:
    """The mark that a delivery up to `position` would have left: of the last record before it. "" at the start of the
    log, where there is none to name."""
    first = log.starts([at])[at]
    if position <= first:
        return ""
    back = 256
    while True:
        start = max(first, position - back)
        for row, epoch in reversed(list(visible(log, at, start, position))):
            return mark_of_row(row, epoch, known.get(epoch, ""))
        if start == first:
            return NOTHING
        back *= 16


def visible(log: Log, at: TopicPartition, start: int, end: int) -> Iterator[tuple[Row, int]]:
    """The committed records in [start, end), each with its leader epoch (-1: not known of this very one). Ends early at
    an open transaction."""
    for records in log.read(at, start, end):
        epoch = records.leader_epoch if records.first_epoch == records.leader_epoch else -1
        for row in map(Row, records.offsets, records.timestamps, records.keys, records.values):
            if row.offset < end:
                yield row, epoch
        if records.undecided:
            return


def waiting(log: Log, positions: Mapping[TopicPartition, int | None], most: int) -> int:
    """How many committed records lie at and after these positions (None: from the start), counted to a little past
    `most`."""
    starts, ends = log.starts(list(positions)), log.ends(list(positions))
    count = 0
    for at, position in positions.items():
        for _ in visible(log, at, max(starts[at], position or 0), ends[at]):
            count += 1
            if count > most:
                return count
    return count


def row_checksum(row: Row) -> int:
    return _checksum(row.timestamp_ms, row.key, row.value)


def checksum(records: Records, at: int) -> int:
    return _checksum(records.timestamps[at], records.keys[at], records.values[at])


def _checksum(timestamp_ms: int, key: bytes | None, value: bytes | None) -> int:
    key = key or b""
    state = zlib.crc32(b"%d %d %d " % (timestamp_ms, len(key), -1 if value is None else len(value)))
    return zlib.crc32(value or b"", zlib.crc32(key, state))


def runs(log: Log, known: Mapping[str, TopicInfo]) -> Mapping[int, str]:
    """The runs that this log says it has had, by leader epoch; empty where it does not say."""
    if RUNS_TOPIC not in known:
        return {}
    at = TopicPartition(RUNS_TOPIC, 0)
    found: dict[int, str] = {}
    for records in log.read(at, log.starts([at])[at], log.ends([at])[at]):
        for value in records.values:
            if value is not None:
                run = json.loads(value)
                found[int(run["run"])] = str(run["id"])
    return found


def validate(log: Log, at: TopicPartition, position: int, run: str, known: Mapping[int, str], where: str) -> None:
    """Returns when `position` is one of this log; raises Diverged otherwise."""
    start, end = log.starts([at])[at], log.ends([at])[at]
    place = f"{where}: partition {at.partition} was delivered up to offset {position} of {at.topic}"
    if position < start:
        raise Diverged(
            f"{place}, which now begins at {start}: {start - position} offsets were deleted before they were "
            "delivered. Put the log back, or go on without them: `semel sink adopt APP.py SINK`."
        )
    if position > end:
        raise Diverged(
            f"{place}, which now ends at {end}: the log went back behind the sink (a backup put back, a tail lost in a "
            f"power cut). {_CHOICE}"
        )
    mark = parsed(run)
    if mark is None:
        return
    if mark.run and known.get(mark.epoch) != mark.run:
        told = f"{known[mark.epoch]}" if mark.epoch in known else "none"
        raise Diverged(
            f"{place}; its last record was written in run {mark.epoch} with the id {mark.run}, and this log has "
            f"{told} there: it is another log, or it was put back from a copy and went another way. {_CHOICE}"
        )
    there, unseen = _from_mark(log, at, max(start, mark.offset), position, mark.offset)
    if unseen >= 0:
        # The position had passed what no reader sees (aborted records), and the log went back to before that.
        raise Diverged(
            f"{place}; its last record was the one at {mark.offset}, and now there is one at {unseen}, which never "
            f"came there: the log went back behind the sink and went on. {_CHOICE}"
        )
    if mark.offset < start:
        return  # delivered, and deleted since
    if there is None or there.offsets[0] != mark.offset:
        raise Diverged(f"{place}; of its last record, at {mark.offset}, the log holds nothing now. {_CHOICE}")
    first, last = there.first_epoch, there.leader_epoch
    # Epochs only rise within a partition: a bound is all there is when the log tells only of the last record.
    other = first != mark.epoch if first >= 0 else 0 <= last < mark.epoch
    if mark.epoch >= 0 and other:
        found = first if first >= 0 else last
        raise Diverged(
            f"{place}; its last record was written in run {mark.epoch}, the one that is there now in run {found}: the "
            f"log went back behind the sink and went on. {_CHOICE}"
        )
    if checksum(there, 0) != mark.checksum:
        raise Diverged(f"{place}; another record is at {mark.offset} now than the one delivered. {_CHOICE}")


def _from_mark(log: Log, at: TopicPartition, start: int, position: int, mark: int) -> tuple[Records | None, int]:
    """The first records in [start, position), and the offset of one behind the mark; -1: none, as it must be."""
    there: Records | None = None
    for records in log.read(at, start, position):
        there = there or (records if records.offsets else None)
        for offset in records.offsets:
            if mark < offset < position:
                return there, offset
    return there, -1


_CHOICE = (
    "Records that are new under old offsets would be skipped, so nothing was delivered. Put back the log that belongs "
    "to this sink, or the sink's backup that belongs to this log; or say which position stands: `semel sink adopt "
    "APP.py SINK` tells what each choice would skip or repeat."
)


def check_outbox(outbox: str, config: Mapping[str, str]) -> None:
    """An outbox may lose nothing by itself: only its delivery truncates it."""
    for name, wanted in (("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")):
        said = config.get(name, wanted)
        if said != wanted:
            raise SinkError(
                f"the outbox {outbox} has {name}={said}: it could lose records before they are delivered. "
                f"Set {name}={wanted}."
            )
