"""How long an outbox keeps what was delivered: when which position was reached, and what is old enough to go.

A sink that is put back from a backup of some age needs what was delivered since: so an outbox is truncated up to where
the delivery was `keep` ago, by the clock of who delivered, not by the records' own times (an app that reads last year's
flights delivers old records today). The moments travel as text with the group's offsets, over restarts; where they are
lost or moved, records stay longer.

Invariant: nothing at or above a position that is durable at the sink is ever named here: `old` is at most `position`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOMENTS = 16  # per `keep`: so much finer than it is the truncation
DEFAULT_MS = 7 * 24 * 3_600_000


class Moment(NamedTuple):
    """At this time the delivery was up to this offset."""

    ms: int
    offset: int


def parsed(text: str) -> list[Moment]:
    """What `text` wrote; what cannot be read counts as lost."""
    found = []
    for part in text.split(","):
        ms, _, offset = part.partition(":")
        if ms.isdigit() and offset.isdigit():
            found.append(Moment(int(ms), int(offset)))
    return found


def text(moments: Sequence[Moment]) -> str:
    return ",".join(f"{ms}:{offset}" for ms, offset in moments)


def noted(moments: Sequence[Moment], now_ms: int, position: int, keep_ms: int) -> list[Moment]:
    """With this moment; the one before it goes where it is too close to its own predecessor, so that the last is always
    the newest. Moments past `position` (a rewind) or past the clock (it was put
    back) are forgotten, and of those older than `keep_ms` all but the last."""
    good = [moment for moment in moments if moment.offset <= position and moment.ms <= now_ms]
    due = [moment for moment in good if moment.ms <= now_ms - keep_ms]
    good = good[max(0, len(due) - 1) :]
    if len(good) > 1 and good[-1].ms - good[-2].ms < keep_ms // MOMENTS:
        good.pop()
    return [*good, Moment(now_ms, position)]


def old(moments: Sequence[Moment], now_ms: int, position: int, keep_ms: int) -> int:
    """Below this offset everything was delivered `keep_ms` ago or before; 0 where nothing is known to have been."""
    due = [moment.offset for moment in moments if moment.ms <= now_ms - keep_ms]
    return min(max(due, default=0), position)
