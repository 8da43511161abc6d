"""From the batches of one fetch to the columns that a reader sees.

Invariant: what is left out is what read_committed leaves out (aborted and control records) and what lies below the
position asked for; `next_offset` is past everything that was in the fetch, visible or not, so a reader never stands
still before aborted records (FAULTS B24).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

from semel.ports import Buffer, Headers, LogLost, Records, TopicPartition
from semel.record.batch import Columns, columns, parse
from semel.record.control import parse_marker
from semel.record.errors import CorruptBatch

BATCH_BYTES_MAX = 900_000  # below max.message.bytes, with room for what encoding adds


class Aborted(Protocol):
    @property
    def producer_id(self) -> int: ...
    @property
    def first_offset(self) -> int: ...


def visible(
    source: TopicPartition, position: int, chunks: Sequence[Buffer], aborted: Sequence[Aborted], log: str = ""
) -> Records | None:
    """The records from `position` on; None when the fetch brought nothing. LogLost when the first batch is damaged;
    from a later one the caller gets what lies before it."""
    starts = sorted(((a.first_offset, a.producer_id) for a in aborted), reverse=True)
    ended: set[int] = set()  # producers whose records here belong to an aborted transaction
    parts: list[Columns] = []
    next_offset, epoch, first_epoch = position, -1, -1
    for chunk in chunks:
        view = memoryview(chunk)
        at = 0
        while at < len(view):
            part: Columns | None = None
            try:
                batch = parse(view, at)
                while starts and starts[-1][0] <= batch.last_offset:
                    ended.add(starts.pop()[1])
                if batch.is_control:
                    marker = parse_marker(batch)
                    if marker is not None and not marker.commit:
                        ended.discard(batch.producer_id)
                elif batch.count and not (batch.is_transactional and batch.producer_id in ended):
                    part = columns(batch)
            except CorruptBatch as damage:
                if next_offset > position:
                    return _whole(source, parts, next_offset, first_epoch, epoch)
                topic, partition = source
                raise LogLost(
                    f"{log}: {topic} partition {partition}, offset {position} is damaged: {damage}. Nothing of that "
                    "batch is used; what lies before it is intact. Restore the folder from a backup, or see what lies "
                    f"behind it: `semel read {topic} --partition {partition} --from LATER --on {log}`."
                ) from None
            at += batch.size
            next_offset = batch.next_offset
            if part is None:
                continue
            if batch.base_offset < position:
                part = _from(part, position)
            if len(part.offsets):
                parts.append(part)
                epoch = batch.leader_epoch
                first_epoch = epoch if first_epoch < 0 else first_epoch
    if next_offset <= position:
        return None
    return _whole(source, parts, next_offset, first_epoch, epoch)


def _whole(source: TopicPartition, parts: Sequence[Columns], next_offset: int, first_epoch: int, epoch: int) -> Records:
    """The batches' columns as one."""
    if not parts:
        return Records(source, (), (), (), (), None, next_offset, -1)
    if len(parts) == 1:
        return Records(source, *parts[0], next_offset, epoch, first_epoch)
    headers: list[Headers] | None = None
    if any(part.headers is not None for part in parts):
        headers = [h for part in parts for h in (part.headers or [()] * len(part.offsets))]
    return Records(
        source,
        [offset for part in parts for offset in part.offsets],
        [stamp for part in parts for stamp in part.timestamps],
        [key for part in parts for key in part.keys],
        [value for part in parts for value in part.values],
        headers,
        next_offset,
        epoch,
        first_epoch,
    )


def _from(part: Columns, position: int) -> Columns:
    """Without the records below `position`: fetches bring whole batches."""
    first = bisect_left(part.offsets, position)
    return Columns(
        part.offsets[first:],
        part.timestamps[first:],
        part.keys[first:],
        part.values[first:],
        None if part.headers is None else part.headers[first:],
    )


def batches(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers | None]
) -> Iterator[tuple[int, int]]:
    """Ranges of records, each of which fits into one batch. A record that is too large alone stays alone: the log
    says so."""
    sizes = [len(value or b"") + len(key or b"") for key, value in zip(keys, values, strict=True)]
    if any(headers):
        for index, given in enumerate(headers):
            sizes[index] += sum(len(name) * 4 + len(value or b"") for name, value in given or ())
    if sum(sizes) <= BATCH_BYTES_MAX:
        yield 0, len(sizes)
        return
    start = total = 0
    for index, size in enumerate(sizes):
        if total + size > BATCH_BYTES_MAX and index > start:
            yield start, index
            start, total = index, 0
        total += size
    yield start, len(sizes)
