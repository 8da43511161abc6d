"""Time in the simulated world: a queue of what happens next, and a clock that jumps from one to the other.

Invariant: what was scheduled for the same moment happens in the order in which it was scheduled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

START_MS: Final = 1_000_000
MOMENT_MAX: Final = 10_000  # of events in one millisecond: more means that something wakes itself for ever


class Stuck(Exception):
    """What was waited for does not come: nothing more happens, the time is up or stands still."""


class Scheduler:
    def __init__(self) -> None:
        self.now_ms = START_MS
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, action))

    def run_until(self, done: Callable[[], bool], limit_ms: int, what: str) -> None:
        """`what` is waited for; Stuck when it has not come within `limit_ms`."""
        end_ms = self.now_ms + limit_ms
        at_once = 0
        while not done():
            if not self._queue or self._queue[0][0] > end_ms:
                raise Stuck(f"{what}: not within {limit_ms} ms")
            at_once = at_once + 1 if self._queue[0][0] == self.now_ms else 0
            if at_once > MOMENT_MAX:
                raise Stuck(f"{what}: the clock stands still, the same happens again and again")
            self.now_ms, _, action = heapq.heappop(self._queue)
            action()

    def wait(self, delay_ms: int) -> None:
        moment = self.now_ms + delay_ms
        self.after(delay_ms, lambda: None)
        self.run_until(lambda: self.now_ms >= moment, delay_ms, "time passes")
