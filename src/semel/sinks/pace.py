"""How many records at once go to a sink that can hold no position: as many as it takes in about a second.

Its position is written behind what it has taken, so an owner that ends in between has it all tried again. A poll brings
thousands of records: at an endpoint that takes a hundred a second, an owner that lives for less than a minute would
never get on, one that is asked to leave would be killed before it can, and its group would put it out.

Invariant: nothing is left out and nothing changes its order; only where one write ends and the next begins is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semel.ports import Records

FIRST, FEWEST, MOST = 200, 10, 20_000
TURN_MS = 1_000


@dataclass(slots=True)
class Pace:
    records: int = FIRST

    def took(self, turn_ms: int) -> None:
        """A turn in which records waited has taken so long."""
        if turn_ms > TURN_MS:
            self.records = max(FEWEST, self.records // 2)
        elif turn_ms < TURN_MS // 4:
            self.records = min(MOST, self.records * 2)


def parted(found: Sequence[Records], count: int) -> tuple[list[Records], list[Records]]:
    """The first `count` records, and the rest. Records of different leader epochs that came as one stay together: the
    mark of the last one names its epoch, which is known of the last only."""
    now: list[Records] = []
    left = list(found)
    while left and count > 0:
        records = left.pop(0)
        held = len(records.offsets)
        if held > count and records.first_epoch in (-1, records.leader_epoch):
            first, rest = _cut(records, count)
            records, held = first, count
            left.insert(0, rest)
        now.append(records)
        count -= held
    while left and not left[0].offsets:  # markers and aborted records only
        now.append(left.pop(0))
    return now, left


def _cut(records: Records, count: int) -> tuple[Records, Records]:
    def part(start: int | None, end: int | None, next_offset: int) -> Records:
        return records._replace(
            offsets=records.offsets[start:end],
            timestamps=records.timestamps[start:end],
            keys=records.keys[start:end],
            values=records.values[start:end],
            headers=None if records.headers is None else records.headers[start:end],
            next_offset=next_offset,
        )

    return part(None, count, records.offsets[count - 1] + 1), part(count, None, records.next_offset)
