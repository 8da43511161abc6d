"""From the batches of one fetch to the columns that a reader sees.

Invariant: what is left out is what read_committed leaves out (aborted and control records) and what lies below the
position asked for; `next_offset` is past everything that was in the fetch, visible or not, so a reader never stands
still before aborted records (FAULTS B24).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

from semel.ports import Buffer, Headers, Records, TopicPartition
from semel.record.batch import Columns, columns, parse
from semel.record.control import parse_marker


class Aborted(Protocol):
    @property
    def producer_id(self) -> int: ...
    @property
    def first_offset(self) -> int: ...


def visible(
    source: TopicPartition, position: int, chunks: Sequence[Buffer], aborted: Sequence[Aborted]
) -> Records | None:
    """The records from `position` on; None when the fetch brought nothing."""
    starts = sorted(((a.first_offset, a.producer_id) for a in aborted), reverse=True)
    ended: set[int] = set()  # producers whose records here belong to an aborted transaction
    parts: list[Columns] = []
    next_offset, epoch, first_epoch = position, -1, -1
    for chunk in chunks:
        view = memoryview(chunk)
        at = 0
        while at < len(view):
            batch = parse(view, at, where=f"{source.topic}-{source.partition}")
            at += batch.size
            next_offset = batch.next_offset
            while starts and starts[-1][0] <= batch.last_offset:
                ended.add(starts.pop()[1])
            if batch.is_control:
                marker = parse_marker(batch)
                if marker is not None and not marker.commit:
                    ended.discard(batch.producer_id)
                continue
            if batch.count == 0 or (batch.is_transactional and batch.producer_id in ended):
                continue
            part = columns(batch)
            if batch.base_offset < position:
                part = _from(part, position)
            if len(part.offsets):
                parts.append(part)
                epoch = batch.leader_epoch
                first_epoch = epoch if first_epoch < 0 else first_epoch
    if next_offset <= position:
        return None
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
