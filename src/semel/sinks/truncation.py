"""An outbox is truncated by its own delivery, and by nothing else.

Invariant: never beyond a position that is durable at the sink and was reached `keep` ago. A superseded owner may still
truncate once: no further than where it was itself, `keep` ago. A person who has gone back behind that meanwhile is told
so by the next claim (a position below the start of the log); nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from semel.ports import Log, NotDone, TopicPartition
from semel.sinks import keep

EACH_MS = 60_000


class Truncation:
    """`keep_ms` None: nothing is truncated, ever."""

    def __init__(self, log: Log, keep_ms: int | None, say: Callable[[str], None]) -> None:
        self._log, self._keep_ms, self._say = log, keep_ms, say
        self._last_ms = -1
        self._done: dict[TopicPartition, int] = {}
        self._refused = ""

    def noted(self, moments: Sequence[keep.Moment], now_ms: int, position: int) -> list[keep.Moment]:
        return [] if self._keep_ms is None else keep.noted(moments, now_ms, position, self._keep_ms)

    def step(self, now_ms: int, lanes: Sequence[tuple[TopicPartition, Sequence[keep.Moment], int]]) -> None:
        """Now and then deletes what is old enough; `lanes`: partitions claimed here, with their positions."""
        if self._keep_ms is None or now_ms - self._last_ms < EACH_MS:
            return
        self._last_ms = now_ms
        before = {}
        for at, moments, position in lanes:
            offset = keep.old(moments, now_ms, position, self._keep_ms)
            if offset > self._done.get(at, 0):
                before[at] = offset
        if not before:
            return
        outcome = self._log.truncate(before)
        if isinstance(outcome, NotDone):
            if outcome.reason != self._refused:
                self._refused = outcome.reason
                self._say(f"what was delivered stays in the outbox, the log did not delete it: {outcome.reason}")
            return
        self._done |= before
