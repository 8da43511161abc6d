"""Where a delivery stands whose only memory is the group's offsets, and under which incarnation.

The group's offset carries the mark of the last record and the incarnation as its metadata. A rewind that takes a new
incarnation is a record of the delivery topic (`cuts.Progress`), which no member of the group can move and which does
not expire: while the group speaks of an older incarnation, or of none, the record holds. Of a delivery by cuts the
group's offset is no position, only what it once stood at (`said`).

Invariant: the incarnation never falls while the topic lives. It is part of each request's key, so a lower one would be
taken for a repeat, and a higher one for a new effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from semel.contract import LogIdentity
from semel.ports import Position
from semel.sinks.cuts import Progress

MOMENTS = " #"  # behind it the moments of `keep`


class Stands(NamedTuple):
    position: int
    mark: str
    incarnation: int


def written(position: int, mark: str, incarnation: int, moments: str = "") -> Position:
    """`moments`: what `keep.text` makes, for the truncation."""
    told = mark if incarnation == 1 else f"{mark} @{incarnation}"
    return Position(position, f"{told}{MOMENTS}{moments}" if moments else told)


def moments_in(position: Position | None) -> str:
    return "" if position is None else position.metadata.partition(MOMENTS)[2]


def interrupted(moved: Iterable[Progress | None], here: LogIdentity) -> bool:
    """Whether a person's move was: it writes one record per partition, all of one incarnation."""
    of_this_log = [one if one is None or (one.topic_id, one.partitions) == (here.topic_id, here.partitions) else None
                   for one in moved]  # fmt: skip
    return len({None if one is None else one.incarnation for one in of_this_log}) > 1


def said(committed: Position | None) -> Stands | None:
    """What the group's offset says by itself."""
    if committed is None:
        return None
    told = committed.metadata.partition(MOMENTS)[0]
    mark, at, incarnation = told.rpartition("@")
    if at and incarnation.isdigit():
        return Stands(committed.offset, mark.rstrip(), int(incarnation))
    return Stands(committed.offset, told, 1)


def read(committed: Position | None, moved: Progress | None, here: LogIdentity) -> Stands | None:
    """None: nothing was delivered yet. `moved`: what the delivery topic says, if there is one."""
    if moved is not None and (moved.topic_id, moved.partitions) != (here.topic_id, here.partitions):
        moved = None  # of a topic before this one, whose keys are others
    found = said(committed)
    if moved is not None and (found is None or found.incarnation < moved.incarnation):
        return Stands(moved.position, moved.mark, moved.incarnation)
    return found
