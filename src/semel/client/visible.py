"""What a reader sees of fetched batches: pure, shared by whoever reads.

At read_committed the broker sends everything below the last stable offset with a list of the transactions in it that
were aborted (producer id, first offset); the reader leaves those out, and control batches at either level. Invariant:
`next_offset` is past everything that was looked at, also where nothing of it is visible (FAULTS B24).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from semel.record import Batch, Columns, Headers, columns, parse_marker


class Visible(NamedTuple):
    columns: Columns
    next_offset: int
    leader_epoch: int  # of the last batch looked at; -1 when there was none
    first_epoch: int  # of the first


def visible(
    batches: Iterable[Batch], position: int, aborted: Sequence[tuple[int, int]] = (), *, committed: bool
) -> Visible:
    """Records from `position` on. `aborted`: (producer id, first offset) of each aborted transaction, as Fetch
    answers them; without `committed` it is not looked at."""
    waiting = sorted(aborted, key=lambda transaction: transaction[1])
    begun = 0
    open_aborted: set[int] = set()
    parts: list[Columns] = []
    next_offset = position
    leader_epoch = first_epoch = -1
    for batch in batches:
        while begun < len(waiting) and waiting[begun][1] <= batch.last_offset:
            open_aborted.add(waiting[begun][0])
            begun += 1
        if batch.is_control:
            marker = parse_marker(batch) if batch.is_transactional else None
            if marker is not None and not marker.commit:
                open_aborted.discard(batch.producer_id)
        # A fetch may begin before the offset asked for; what ends there must still be noted, above.
        if batch.last_offset < position:
            continue
        next_offset = batch.next_offset
        if first_epoch < 0:
            first_epoch = batch.leader_epoch
        leader_epoch = batch.leader_epoch
        if batch.is_control:
            continue
        if committed and batch.is_transactional and batch.producer_id in open_aborted:
            continue
        found = columns(batch)
        skipped = sum(1 for offset in found.offsets if offset < position) if batch.base_offset < position else 0
        parts.append(_from(found, skipped) if skipped else found)
    return Visible(joined(parts), next_offset, leader_epoch, first_epoch)


def _from(found: Columns, skipped: int) -> Columns:
    return Columns(
        found.offsets[skipped:],
        found.timestamps[skipped:],
        found.keys[skipped:],
        found.values[skipped:],
        None if found.headers is None else found.headers[skipped:],
    )


def joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several batches, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    offsets: list[int] = []
    timestamps: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    headers: list[Headers] | None = None
    if any(part.headers is not None for part in parts):
        headers = []
    for part in parts:
        offsets += part.offsets
        timestamps += part.timestamps
        keys += part.keys
        values += part.values
        if headers is not None:
            headers += part.headers if part.headers is not None else [()] * len(part.offsets)
    return Columns(offsets, timestamps, keys, values, headers)
